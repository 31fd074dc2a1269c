"""Progressive distillation: a student of N steps learns two DDIM steps of its teacher's 2N, again and again.

Salimans & Ho 2022 (arXiv 2202.00512), algorithm 2: inverse-DDIM target, truncated SNR weight, each stage's student is the
next stage's teacher, the learning rate falls to zero in every stage, no averaging. A teacher guided by two evaluations is
first distilled to one with the guidance scale as an input (Meng et al. 2023, arXiv 2210.03142, two stages).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import inverse_ddim_target
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import StudentSpec
from distill_rt.training.copies import assign, frozen_copy
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.losses import squared_error, truncated_snr
from distill_rt.training.methods.base import Networks, Phase, check_trained, sequence
from distill_rt.training.methods.guidance import guidance_loss
from distill_rt.training.predictor import Predictor, Teacher
from distill_rt.training.student import distilled_contract, draw_conditions, embed_guidance, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class Progressive:
    """Progressive distillation.

    Args:
        steps: of the final student.
        start_steps: DDIM steps of the teacher that the first stage halves; `steps` times a power of two.
        stage_iterations, last_iterations: training steps of every stage but the last, and of the last.
        guidance_iterations: training steps of the guidance stage (teachers guided by two evaluations only).
    """

    name: ClassVar[str] = "progressive"
    follows_trajectory: ClassVar[bool] = True

    steps: int = 4
    start_steps: int = 32
    guidance_iterations: int = 300
    stage_iterations: int = 200
    last_iterations: int = 400
    batch_size: int = 128
    peak_learning_rate: float = 1e-3
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        ratio = self.start_steps // max(self.steps, 1)
        if self.steps < 1 or self.steps * ratio != self.start_steps or ratio < 2 or ratio & (ratio - 1):
            raise UsageError(
                f"start_steps must be steps times 2, 4, 8, ...; got start_steps={self.start_steps}, steps={self.steps}",
                code="steps-not-halving",
                hint=f"for example --set start_steps={max(self.steps, 1) * 8}",
            )

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        guided = teacher.guidance.mode == "cfg"
        check_trained(stage_iterations=self.stage_iterations, last_iterations=self.last_iterations)
        check_trained(**({"guidance_iterations": self.guidance_iterations} if guided else {}))
        phases = [("guidance", self.guidance_iterations if guided else 0, 0)]
        num_steps = self.start_steps // 2
        while num_steps >= self.steps:
            iterations = self.last_iterations if num_steps == self.steps else self.stage_iterations
            phases.append((f"{num_steps} steps", iterations, num_steps))
            num_steps //= 2
        return sequence(phases)

    def learning_rate(self, phase: Phase, step: int) -> float:
        return self.peak_learning_rate * (1.0 - (step - phase.start) / phase.iterations)

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        times = [1.0 - i / self.steps for i in range(self.steps)]
        plans = {self.steps: ddim(teacher.process, teacher.parameterization, times)}
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        student = student_network(teacher, self.contract(teacher.spec))
        return {"student": student, "stage_teacher": frozen_copy(student)}

    def begin(self, phase: Phase, networks: Networks) -> None:
        assign(networks["stage_teacher"], networks["student"])

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        if phase.target == 0:
            return {"guidance": guidance_loss(networks["student"], teacher, batch, draws)}
        stage_teacher = Teacher(embed_guidance(teacher.spec), networks["stage_teacher"])
        return {"halving": halving_loss(networks["student"], stage_teacher, phase.target, batch, draws)}

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        pass


def halving_loss(student: nn.Module, teacher: Teacher, num_steps: int, batch: Batch, draws: Draws) -> Tensor:
    """``max(SNR, 1) |x0_student - x0_target|^2`` on the N-step grid (Salimans & Ho 2022, algorithm 2)."""
    x0, target, weight_B = halving_pair(student, teacher, num_steps, batch, draws)
    return (weight_B * squared_error(x0, target)).mean()


def halving_pair(
    student: nn.Module, teacher: Teacher, num_steps: int, batch: Batch, draws: Draws
) -> tuple[Tensor, Tensor, Tensor]:
    """The student's x0 at a time of the N-step grid, the x0 that it should be, and the weight (B,) of their difference.

    The target is the x0 whose one DDIM jump t -> t - 1/N lands where the teacher's two half jumps land. In the last step
    the jump ends at clean data, where the landing point itself is that x0.
    """
    process = teacher.process
    conditions = draw_conditions(teacher.spec, batch, draws)
    i_B = draws.integers(1, num_steps + 1, Purpose.TIME)
    t_B, middle_B, s_B = i_B / num_steps, (i_B - 0.5) / num_steps, (i_B - 1) / num_steps
    x_t = process.add_noise(batch.x0_BCHW, draws.normal(teacher.spec.sample_shape), t_B)
    x_middle = teacher.step(x_t, t_B, middle_B, conditions)
    x0_middle = teacher.x0(x_middle, middle_B, conditions)
    x_s = teacher.step_with(x_middle, x0_middle, middle_B, s_B)
    inverted = inverse_ddim_target(x_t, x_s, process.at(t_B), process.at(s_B))
    target = torch.where((i_B == 1)[:, None, None, None], x0_middle, inverted)
    x0 = Predictor.of(teacher.spec, student).x0(x_t, t_B, conditions)
    return x0, target, truncated_snr(process.at(t_B))
