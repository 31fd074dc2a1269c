"""Guidance as an input: one evaluation learns what two evaluations and a scale gave.

Meng et al. 2023, "On distillation of guided diffusion models" (arXiv 2210.03142), section 3.1 (stage one). Our w is their
1 + w: the student learns ``x0_u + w (x0_c - x0_u)`` for w uniform over the contract's range. The student starts as the
conditional teacher, w enters through a zero-initialised branch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from distill_rt.core.errors import UsageError
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import StepTable
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.losses import squared_error, truncated_snr
from distill_rt.training.methods.base import Networks, Phase, sequence
from distill_rt.training.predictor import Conditions, Predictor, Teacher
from distill_rt.training.student import distilled_contract, draw_conditions, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class GuidanceDistillation:
    """Args: steps: the plan that the contract offers by default; 2, 4 and 8 times as many are offered too."""

    name: ClassVar[str] = "guidance"
    follows_trajectory: ClassVar[bool] = True

    steps: int = 4
    iterations: int = 600
    batch_size: int = 128
    peak_learning_rate: float = 1e-3
    ema_decay: float = 0.98

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        require_two_evaluations(teacher)
        return sequence([("guidance", self.iterations, 0)])

    def learning_rate(self, phase: Phase, step: int) -> float:
        return self.peak_learning_rate * (1.0 - step / phase.iterations)

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        plans = {n: many_step_table(teacher, n) for n in (self.steps, 2 * self.steps, 4 * self.steps, 8 * self.steps)}
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        return {"student": student_network(teacher, self.contract(teacher.spec))}

    def begin(self, phase: Phase, networks: Networks) -> None:
        pass

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        return {"guidance": guidance_loss(networks["student"], teacher, batch, draws)}

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        pass


def guidance_loss(student: nn.Module, teacher: Teacher, batch: Batch, draws: Draws) -> Tensor:
    """``max(SNR, 1) |x0_student(x_t, w) - x0_guided(x_t, w)|^2``, t uniform (Meng et al. 2023, equation 3)."""
    process = teacher.process
    conditions: Conditions = draw_conditions(teacher.spec, batch, draws)
    t_B = draws.uniform(Purpose.TIME)
    x_t = process.add_noise(batch.x0_BCHW, draws.normal(teacher.spec.sample_shape), t_B)
    target = teacher.x0(x_t, t_B, conditions)
    x0 = Predictor.of(teacher.spec, student).x0(x_t, t_B, conditions)
    return (truncated_snr(process.at(t_B)) * squared_error(x0, target)).mean()


def require_two_evaluations(teacher: StudentSpec) -> None:
    """There must be guidance to distil.

    Raises:
        UsageError: a teacher that one evaluation serves already.
    """
    if teacher.guidance.mode != "cfg":
        raise UsageError(
            f"guidance distillation needs a teacher that is guided by two evaluations (cfg); "
            f"{teacher.name!r} has guidance {teacher.guidance.mode!r}",
            code="teacher-not-guided",
            hint="use progressive or consistency, or another teacher",
        )


def many_step_table(spec: StudentSpec, num_steps: int) -> StepTable:
    """Uniform steps of the ODE: DPM-Solver++(2M) from 8 steps on, where its second order pays; DDIM below."""
    times = [1.0 - i / num_steps for i in range(num_steps)]
    solver = dpmpp_2m if num_steps >= 8 else ddim
    return solver(spec.process, spec.parameterization, times)
