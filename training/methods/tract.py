"""Transitive closure distillation: a student jumps over a whole segment of its teacher's steps.

Berthelot et al. 2023 (arXiv 2303.04248), algorithm 1: one teacher step, then the student's own slow copy to the end of the
segment, so a few stages replace the many halvings of progressive distillation. The target is the x0 whose one DDIM jump lands
at that end, the weight the truncated SNR. Converges to the teacher's DDIM map, bias included.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill_rt.core.prediction import inverse_ddim_target
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import StudentSpec
from distill_rt.training.copies import assign, average_into, frozen_copy
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.losses import squared_error, truncated_snr
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting, check_trained, sequence
from distill_rt.training.methods.guidance import guidance_loss
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Predictor, Teacher
from distill_rt.training.student import distilled_contract, draw_conditions, embed_guidance, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class Tract(OneStage):
    """Transitive closure time-distillation (TRACT).

    Args:
        steps: of the final student.
        middle_ratio: the first of two stages makes a student of `middle_ratio` times as many steps; 1 leaves it out.
        start_steps: DDIM steps of the teacher, a multiple of the first stage's.
        self_teacher_decay: of the slow copy; short memory matters (the paper's appendix: 0.5 works, 0.999 does not).
        guidance_iterations: of the guidance stage (teachers guided by two evaluations only).
        first_iterations, iterations: training steps of the first and of the last stage.
    """

    name: ClassVar[str] = "tract"

    steps: int = 4
    middle_ratio: int = 2
    start_steps: int = 32
    self_teacher_decay: float = 0.5
    guidance_iterations: int = 300
    first_iterations: int = 600
    iterations: int = 1200

    def __post_init__(self) -> None:
        first = self.steps * self.middle_ratio
        check_setting(
            self.steps >= 1 and self.middle_ratio >= 1 and self.start_steps > first and self.start_steps % first == 0,
            f"start_steps must be a multiple of steps times middle_ratio and larger; got start_steps={self.start_steps}, "
            f"steps={self.steps}, middle_ratio={self.middle_ratio}",
        )
        check_setting(
            0.0 <= self.self_teacher_decay < 1.0,
            f"self_teacher_decay must be in [0, 1), got {self.self_teacher_decay:g}",
        )

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        guided = teacher.guidance.mode == "cfg"
        check_trained(iterations=self.iterations)
        check_trained(**({"first_iterations": self.first_iterations} if self.middle_ratio > 1 else {}))
        check_trained(**({"guidance_iterations": self.guidance_iterations} if guided else {}))
        phases = [("guidance", self.guidance_iterations if guided else 0, 0)]
        if self.middle_ratio > 1:
            first = self.steps * self.middle_ratio
            phases.append((f"{self.start_steps} to {first} steps", self.first_iterations, first))
        phases.append((f"{self._fine(self.steps)} to {self.steps} steps", self.iterations, self.steps))
        return sequence(phases)

    def _fine(self, num_steps: int) -> int:
        """Steps of the teacher of the stage that ends at `num_steps`."""
        return self.steps * self.middle_ratio if num_steps == self.steps and self.middle_ratio > 1 else self.start_steps

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        plans = {self.steps: ddim(teacher.process, teacher.parameterization, uniform_times(self.steps))}
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        student = student_network(teacher, self.contract(teacher.spec))
        return {"student": student, "stage_teacher": frozen_copy(student), "self_teacher": frozen_copy(student)}

    def begin(self, phase: Phase, networks: Networks) -> None:
        assign(networks["stage_teacher"], networks["student"])
        assign(networks["self_teacher"], networks["student"])

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        if phase.target == 0:
            return {"guidance": guidance_loss(networks["student"], teacher, batch, draws)}
        stage_teacher = Teacher(embed_guidance(teacher.spec), networks["stage_teacher"])
        self_teacher = Teacher(stage_teacher.spec, networks["self_teacher"])
        fine = self._fine(phase.target)
        return {"tract": tract_loss(networks["student"], stage_teacher, self_teacher, phase.target, fine, batch, draws)}

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        average_into(networks["self_teacher"], networks["student"], self.self_teacher_decay)


def tract_loss(
    student: nn.Module,
    teacher: Teacher,
    self_teacher: Teacher,
    num_steps: int,
    fine_steps: int,
    batch: Batch,
    draws: Draws,
) -> Tensor:
    """``max(SNR, 1) |x0_student - x0_target|^2`` for t on the grid of `fine_steps`, segments of ``fine_steps / num_steps``.

    The landing point at the segment's end s is the teacher's own where its one step ends there, else the slow copy's jump
    from where that step ends.
    """
    process = teacher.process
    conditions = draw_conditions(teacher.spec, batch, draws)
    length = fine_steps // num_steps
    i_B = draws.integers(1, fine_steps + 1, Purpose.TIME)
    end_B = (i_B - 1) // length * length
    t_B, next_B, s_B = i_B / fine_steps, (i_B - 1) / fine_steps, end_B / fine_steps
    x_t = process.add_noise(batch.x0_BCHW, draws.normal(teacher.spec.sample_shape), t_B)
    x0_teacher = teacher.x0(x_t, t_B, conditions)
    x_next = teacher.step_with(x_t, x0_teacher, t_B, next_B)
    at_end = (end_B == i_B - 1)[:, None, None, None]
    x_s = torch.where(at_end, x_next, self_teacher.step(x_next, next_B, s_B, conditions))
    # Where both jumps are one and end at data, the inversion would divide two small numbers: the answer is known.
    inverted = inverse_ddim_target(x_t, x_s, process.at(t_B), process.at(s_B))
    target = torch.where(at_end, x0_teacher, inverted)
    x0 = Predictor.of(teacher.spec, student).x0(x_t, t_B, conditions)
    return (truncated_snr(process.at(t_B)) * squared_error(x0, target)).mean()
