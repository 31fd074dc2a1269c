"""Consistency training: a consistency model on data, neighbouring levels of one grid that grows finer.

Song & Dhariwal 2023 (iCT, arXiv 2310.14189): `ict_pair` on N(k) levels, N doubling from `first_levels` to `last_levels`; x_t
and x_s share image and noise; the target is the student itself without gradient (no average: their section 3.2); pseudo-Huber
metric, weight 1 / (ratio - next). With ``first_weights=fresh`` it trains from nothing, as they do; with ``teacher`` it begins
with the teacher's weights, which is all that is taken from it.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from distill_rt.core.spec import StudentSpec
from distill_rt.models import build_network
from distill_rt.training.consistency import both_ends, ict_pair, max_ratio_time, renoise_plans, require_boundary
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws
from distill_rt.training.losses import pseudo_huber
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting, sequence
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.student import distilled_contract, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsistencyTraining(OneStage):
    """Args: steps: largest plan; first_levels, last_levels: s0 and s1 of the paper; huber: c; plan_power: of the times of a
    plan (`renoise_plans`); first_weights: what it begins with."""

    name: ClassVar[str] = "consistency_training"

    steps: int = 4
    first_levels: int = 10
    last_levels: int = 160
    huber: float = 0.001
    plan_power: float = 2.0
    first_weights: Literal["teacher", "fresh"] = "teacher"
    iterations: int = 3000

    def __post_init__(self) -> None:
        check_setting(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        check_setting(
            2 <= self.first_levels <= self.last_levels,
            f"needs 2 <= first_levels <= last_levels, got {self.first_levels} and {self.last_levels}",
        )
        check_setting(self.huber > 0.0, f"huber must be positive, got {self.huber:g}")

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        require_boundary(teacher)
        return sequence([(self.name, self.iterations, 0)])

    def num_levels(self, progress: float) -> int:
        """N at `progress` in [0, 1): ``min(s0 2^j, s1) + 1``, every doubling j equally long (iCT, section 3.4)."""
        doublings = math.ceil(math.log2(self.last_levels / self.first_levels))
        return min(self.first_levels << int(progress * (doublings + 1)), self.last_levels) + 1

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        return distilled_contract(
            teacher,
            method=self.name,
            plans=renoise_plans(teacher, self.steps, start=max_ratio_time(teacher.process), power=self.plan_power),
            default_steps=self.steps,
            settings=dataclasses.asdict(self),
            guided=False,
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        spec = self.contract(teacher.spec)
        fresh = self.first_weights == "fresh"
        return {"student": build_network(spec.networks[0]) if fresh else student_network(teacher, spec)}

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, student = teacher.spec, networks["student"]
        num_levels = self.num_levels((step - phase.start) / phase.iterations)
        t_B, s_B, weight_B = ict_pair(spec.process, num_levels, draws)
        eps = draws.normal(spec.sample_shape)
        states = spec.process.add_noise(batch.x0_BCHW, eps, t_B), spec.process.add_noise(batch.x0_BCHW, eps, s_B)
        conditions = Conditions(label_B=batch.label_B, text_BLD=batch.text_BLD)
        x0, target = both_ends(spec, student, student, states, (t_B, s_B), conditions)
        return {"consistency_training": (weight_B * pseudo_huber(x0, target, self.huber)).mean()}
