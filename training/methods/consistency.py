"""Consistency distillation: every point of the teacher's trajectory maps to the same clean image.

Song et al. 2023 (arXiv 2303.01469), algorithm 2: x_t is noised data, x_s the point one teacher step further down, and the
student's x0 at (x_t, t) regresses on a slow copy's x0 at (x_s, s). Guidance of a two-evaluation teacher happens inside the
solver, with the scale as an input (Luo et al. 2023, arXiv 2310.04378, section 4.2).

Two laws for the pair (t, s):

* ``fixed``: t on a uniform grid of `num_levels` levels, s the next one down; the target network is an average (decay 0.95).
* ``ect``: `ect_pair` with an exponent that grows over training, pseudo-Huber metric, the target is the student itself (ECD: the
  pairs of Geng et al. 2024, arXiv 2406.14548, with the teacher's step where they use the data; `ect` uses the data).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from distill_rt.core.spec import StudentSpec
from distill_rt.training.consistency import (
    both_ends,
    ect_pair,
    grid_pair,
    growing_exponent,
    max_ratio_time,
    renoise_plans,
    require_boundary,
)
from distill_rt.training.copies import average_into, frozen_copy, warmed_decay
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws
from distill_rt.training.losses import pseudo_huber, squared_error
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting, sequence
from distill_rt.training.predictor import Teacher
from distill_rt.training.student import distilled_contract, draw_conditions, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class Consistency(OneStage):
    """Consistency distillation.

    Args:
        steps: largest plan; every power of two below it is offered too (re-noising between evaluations).
        pairs: ``fixed`` or ``ect``.
        num_levels: grid of ``fixed``.
        first_exponent, last_exponent: k of ``ect`` at the start and at the end.
        target_decay: of the average that gives the targets of ``fixed``.
        solver_order: of the teacher step: 1 is DDIM, 2 evaluates twice.
        huber: c of the pseudo-Huber metric of ``ect``.
        plan_power: of the times at which a plan of several evaluations adds fresh noise (`renoise_plans`).
    """

    name: ClassVar[str] = "consistency"

    steps: int = 4
    pairs: Literal["fixed", "ect"] = "fixed"
    num_levels: int = 24
    first_exponent: int = 1
    last_exponent: int = 5
    target_decay: float = 0.95
    solver_order: int = 2
    huber: float = 0.001
    plan_power: float = 2.0

    def __post_init__(self) -> None:
        check_setting(
            self.steps >= 1 and self.num_levels >= 2,
            f"consistency needs steps >= 1 and num_levels >= 2, got {self.steps} and {self.num_levels}",
        )
        check_setting(self.solver_order in (1, 2), f"solver_order must be 1 or 2, got {self.solver_order}")
        check_setting(0.0 <= self.target_decay < 1.0, f"target_decay must be in [0, 1), got {self.target_decay:g}")
        check_setting(self.huber > 0.0, f"huber must be positive, got {self.huber:g}")
        check_setting(
            1 <= self.first_exponent <= self.last_exponent,
            f"needs 1 <= first_exponent <= last_exponent, got {self.first_exponent} and {self.last_exponent}",
        )

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        require_boundary(teacher)
        return sequence([(self.name, self.iterations, 0)])

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        start = 1.0 if self.pairs == "fixed" else max_ratio_time(teacher.process)
        plans = renoise_plans(teacher, self.steps, start=start, power=self.plan_power)
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        student = student_network(teacher, self.contract(teacher.spec))
        return {"student": student, "target": frozen_copy(student)}

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        process, fixed = teacher.process, self.pairs == "fixed"
        conditions = draw_conditions(teacher.spec, batch, draws)
        k = growing_exponent(self.first_exponent, self.last_exponent, (step - phase.start) / phase.iterations)
        t_B, s_B, weight_B = grid_pair(self.num_levels, draws) if fixed else ect_pair(process, k, draws)
        x_t = process.add_noise(batch.x0_BCHW, draws.normal(teacher.spec.sample_shape), t_B)
        x_s = teacher.step(x_t, t_B, s_B, conditions, order=self.solver_order)
        target_network = networks["target" if fixed else "student"]
        x0, target = both_ends(teacher.spec, networks["student"], target_network, (x_t, x_s), (t_B, s_B), conditions)
        distance_B = squared_error(x0, target) if fixed else pseudo_huber(x0, target, self.huber)
        return {"consistency": (weight_B * distance_B).mean()}

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        if self.pairs == "fixed":
            average_into(networks["target"], networks["student"], warmed_decay(self.target_decay, step))
