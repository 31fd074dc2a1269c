"""Easy consistency tuning: a diffusion model becomes a consistency model on data alone.

Geng et al. 2024 (arXiv 2406.14548): x_t and x_s share image and noise, their distance shrinks over training, the target is the
student itself without gradient, pseudo-Huber metric, weight 1 / (ratio - next). The teacher gives the first weights only, so
its guidance is not learned.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from distill_rt.core.spec import StudentSpec
from distill_rt.training.consistency import (
    both_ends,
    ect_pair,
    growing_exponent,
    max_ratio_time,
    renoise_plans,
    require_boundary,
)
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws
from distill_rt.training.losses import pseudo_huber
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting, sequence
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.student import distilled_contract


@dataclass(frozen=True, kw_only=True, slots=True)
class EasyConsistencyTuning(OneStage):
    """Args: steps: largest plan; first_exponent, last_exponent: k at the start and at the end; huber: c of the metric;
    plan_power: of the times of a plan (`renoise_plans`)."""

    name: ClassVar[str] = "ect"

    steps: int = 4
    first_exponent: int = 1
    last_exponent: int = 6
    huber: float = 0.001
    plan_power: float = 2.0
    iterations: int = 3000

    def __post_init__(self) -> None:
        check_setting(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        check_setting(
            1 <= self.first_exponent <= self.last_exponent,
            f"needs 1 <= first_exponent <= last_exponent, got {self.first_exponent} and {self.last_exponent}",
        )
        check_setting(self.huber > 0.0, f"huber must be positive, got {self.huber:g}")

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        require_boundary(teacher)
        return sequence([(self.name, self.iterations, 0)])

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        return distilled_contract(
            teacher,
            method=self.name,
            plans=renoise_plans(teacher, self.steps, start=max_ratio_time(teacher.process), power=self.plan_power),
            default_steps=self.steps,
            settings=dataclasses.asdict(self),
            guided=False,
        )

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, student = teacher.spec, networks["student"]
        k = growing_exponent(self.first_exponent, self.last_exponent, (step - phase.start) / phase.iterations)
        t_B, s_B, weight_B = ect_pair(spec.process, k, draws)
        eps = draws.normal(spec.sample_shape)
        states = spec.process.add_noise(batch.x0_BCHW, eps, t_B), spec.process.add_noise(batch.x0_BCHW, eps, s_B)
        conditions = Conditions(label_B=batch.label_B, text_BLD=batch.text_BLD)
        x0, target = both_ends(spec, student, student, states, (t_B, s_B), conditions)
        return {"ect": (weight_B * pseudo_huber(x0, target, self.huber)).mean()}
