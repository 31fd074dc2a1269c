"""Phased consistency: every point of a phase maps to the phase's end, so that the student's own few steps are deterministic.

Wang et al. 2024 (PCM, arXiv 2405.18407), section 3.1, without the adversarial part: [0, 1] is cut into `steps` phases; the
student's DDIM jump from x_t to its phase's end regresses on a slow copy's jump from x_u, u one teacher step below t. Within a
phase that is consistency distillation; with one phase it is consistency distillation.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import StudentSpec
from distill_rt.training.consistency import both_ends
from distill_rt.training.copies import average_into, frozen_copy, warmed_decay
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.flow_map import jump
from distill_rt.training.losses import pseudo_huber
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Teacher
from distill_rt.training.student import distilled_contract, draw_conditions, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class PhasedConsistency(OneStage):
    """Phased consistency models.

    Args:
        steps: phases, which is what the student's one plan has.
        levels_per_phase: teacher steps within a phase.
        target_decay: of the slow copy.
        solver_order: of the teacher step: 1 is DDIM, 2 evaluates twice.
        huber: c of the pseudo-Huber metric.
    """

    name: ClassVar[str] = "pcm"

    steps: int = 4
    levels_per_phase: int = 8
    target_decay: float = 0.95
    solver_order: int = 2
    huber: float = 0.1
    iterations: int = 2000

    def __post_init__(self) -> None:
        check_setting(
            self.steps >= 1 and self.levels_per_phase >= 2,
            f"pcm needs steps >= 1 and levels_per_phase >= 2, got {self.steps} and {self.levels_per_phase}",
        )
        check_setting(self.solver_order in (1, 2), f"solver_order must be 1 or 2, got {self.solver_order}")
        check_setting(self.huber > 0.0, f"huber must be positive, got {self.huber:g}")
        check_setting(0.0 <= self.target_decay < 1.0, f"target_decay must be in [0, 1), got {self.target_decay:g}")

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        plans = {self.steps: ddim(teacher.process, teacher.parameterization, uniform_times(self.steps))}
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        student = student_network(teacher, self.contract(teacher.spec))
        return {"student": student, "target": frozen_copy(student)}

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        process, length = teacher.process, self.levels_per_phase
        num_levels = self.steps * length
        conditions = draw_conditions(teacher.spec, batch, draws)
        i_B = draws.integers(1, num_levels + 1, Purpose.TIME)
        end_B = (i_B - 1) // length * length
        t_B, u_B, s_B = i_B / num_levels, (i_B - 1) / num_levels, end_B / num_levels
        x_t = process.add_noise(batch.x0_BCHW, draws.normal(teacher.spec.sample_shape), t_B)
        x_u = teacher.step(x_t, t_B, u_B, conditions, order=self.solver_order)
        x0_t, x0_u = both_ends(
            teacher.spec, networks["student"], networks["target"], (x_t, x_u), (t_B, u_B), conditions
        )
        # Where u is the phase's end the jump from it is no jump: the teacher's own point is the target.
        at_end = (end_B == i_B - 1)[:, None, None, None]
        wanted = torch.where(at_end, x_u, jump(process, x_u, x0_u, u_B, s_B))
        reached = jump(process, x_t, x0_t, t_B, s_B)
        return {"pcm": pseudo_huber(reached, wanted, self.huber).mean()}

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        average_into(networks["target"], networks["student"], warmed_decay(self.target_decay, step))
