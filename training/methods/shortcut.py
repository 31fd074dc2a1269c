"""Shortcut models: a jump over 2d is two jumps over d.

Frans et al. 2025 (arXiv 2410.12557), section 3: for a share of the batch, a jump of dyadic length 1/N from a multiple of it
regresses on two jumps of half the length by a slow copy; for the rest the jump of length 0 is the teacher's own velocity
(where they train from nothing: the data's). Errors are those of the average velocity in the rectified flow's coordinates
(`flow_map`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill_rt.core.prediction import inverse_ddim_target
from distill_rt.core.spec import StudentSpec
from distill_rt.training.copies import average_into, frozen_copy, warmed_decay
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.flow_map import jump, two_time_contract, two_time_x0, velocity_weight
from distill_rt.training.losses import squared_error
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting
from distill_rt.training.predictor import Teacher
from distill_rt.training.student import draw_conditions, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortcut(OneStage):
    """Shortcut models.

    Args:
        steps: largest plan; every power of two below it is offered too, all deterministic.
        finest: shortest jump is 1 / finest, a power of two; its halves are jumps of length 0.
        bootstrap: share of the batch that learns to join two jumps.
        target_decay: of the slow copy.
    """

    name: ClassVar[str] = "shortcut"

    steps: int = 4
    finest: int = 32
    bootstrap: float = 0.5
    target_decay: float = 0.98
    iterations: int = 3000

    def __post_init__(self) -> None:
        check_setting(
            1 <= self.steps <= self.finest and self.steps & (self.steps - 1) == 0,
            f"shortcut trains jumps of 1, 1/2, 1/4, ...: steps must be a power of two up to {self.finest}, got {self.steps}",
        )
        check_setting(
            self.finest >= 2 and self.finest & (self.finest - 1) == 0,
            f"finest must be a power of two from 2 on, got {self.finest}",
        )
        check_setting(0.0 < self.bootstrap < 1.0, f"bootstrap must be between 0 and 1, got {self.bootstrap:g}")
        check_setting(0.0 <= self.target_decay < 1.0, f"target_decay must be in [0, 1), got {self.target_decay:g}")

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        return two_time_contract(teacher, method=self.name, steps=self.steps, settings=dataclasses.asdict(self))

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        student = student_network(teacher, self.contract(teacher.spec))
        return {"student": student, "target": frozen_copy(student)}

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, process, target = teacher.spec, teacher.process, networks["target"]
        c = draw_conditions(spec, batch, draws)
        joins_B = draws.uniform(Purpose.CONDITION_DROP) < self.bootstrap
        num_B = 2 ** draws.integers(0, self.finest.bit_length(), Purpose.SECOND_TIME)
        u_B = draws.uniform(Purpose.TIME)
        on_grid_B = (torch.floor(u_B * num_B) + 1.0) / num_B
        t_B = torch.where(joins_B, on_grid_B, u_B)
        end_B = torch.where(joins_B, on_grid_B - 1.0 / num_B, u_B).clamp(min=0.0)
        middle_B = 0.5 * (t_B + end_B)
        # Halves of the shortest jump are jumps of length 0: their target time is where they start.
        shortest_B = num_B == self.finest
        x_t = process.add_noise(batch.x0_BCHW, draws.normal(spec.sample_shape), t_B)
        with torch.no_grad():
            first = two_time_x0(spec, target, x_t, t_B, torch.where(shortest_B, t_B, middle_B), c)
            x_middle = jump(process, x_t, first, t_B, middle_B)
            second = two_time_x0(spec, target, x_middle, middle_B, torch.where(shortest_B, middle_B, end_B), c)
            x_s = jump(process, x_middle, second, middle_B, end_B)
            joined = inverse_ddim_target(x_t, x_s, process.at(t_B), process.at(end_B))
            wanted = torch.where(joins_B[:, None, None, None], joined, teacher.x0(x_t, t_B, c))
        x0 = two_time_x0(spec, networks["student"], x_t, t_B, end_B, c)
        return {"shortcut": (velocity_weight(process, t_B) * squared_error(x0, wanted)).mean()}

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        average_into(networks["target"], networks["student"], warmed_decay(self.target_decay, step))
