"""Consistency trajectory models: one network jumps from any time to any lower one.

Kim et al. 2024 (CTM, arXiv 2310.02279), equation 12 without the adversarial part: the student's jump x_t -> x_s and a slow
copy's jump x_u -> x_s, u one teacher step below t, are both taken on to clean data by the slow copy and compared there (soft
consistency matching); beside it, for s = t the network is the teacher's denoiser (their equation 14).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill_rt.core.spec import StudentSpec
from distill_rt.training.copies import average_into, frozen_copy, warmed_decay
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.flow_map import jump, two_time_contract, two_time_x0
from distill_rt.training.losses import pseudo_huber, squared_error
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting
from distill_rt.training.predictor import Teacher
from distill_rt.training.student import draw_conditions, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsistencyTrajectory(OneStage):
    """Consistency trajectory models (CTM).

    Args:
        steps: largest plan; every power of two below it is offered too, all deterministic.
        num_levels: grid of the times.
        target_decay: of the slow copy.
        solver_order: of the teacher step.
        denoising_weight: of the teacher's denoiser at s = t.
        end_share: share of the batch with s = 0, the jumps of one step; the rest has any s below t.
        huber: c of the pseudo-Huber metric.
    """

    name: ClassVar[str] = "ctm"

    steps: int = 4
    num_levels: int = 24
    target_decay: float = 0.95
    solver_order: int = 2
    denoising_weight: float = 0.2
    end_share: float = 0.15
    huber: float = 0.1
    iterations: int = 2500

    def __post_init__(self) -> None:
        check_setting(
            self.steps >= 1 and self.num_levels >= 2,
            f"ctm needs steps >= 1 and num_levels >= 2, got {self.steps} and {self.num_levels}",
        )
        check_setting(self.solver_order in (1, 2), f"solver_order must be 1 or 2, got {self.solver_order}")
        check_setting(0.0 <= self.end_share < 1.0, f"end_share must be in [0, 1), got {self.end_share:g}")
        check_setting(self.huber > 0.0, f"huber must be positive, got {self.huber:g}")
        check_setting(0.0 <= self.target_decay < 1.0, f"target_decay must be in [0, 1), got {self.target_decay:g}")

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        return two_time_contract(teacher, method=self.name, steps=self.steps, settings=dataclasses.asdict(self))

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        student = student_network(teacher, self.contract(teacher.spec))
        return {"student": student, "target": frozen_copy(student)}

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, process, student, target = teacher.spec, teacher.process, networks["student"], networks["target"]
        c = draw_conditions(spec, batch, draws)
        i_B = draws.integers(1, self.num_levels + 1, Purpose.TIME)
        share_B = (draws.uniform(Purpose.SECOND_TIME) - self.end_share).clamp(min=0.0) / (1.0 - self.end_share)
        k_B = (share_B * i_B).long()
        t_B, u_B, s_B = i_B / self.num_levels, (i_B - 1) / self.num_levels, k_B / self.num_levels
        zero_B = torch.zeros_like(t_B)
        x_t = process.add_noise(batch.x0_BCHW, draws.normal(spec.sample_shape), t_B)
        x0_teacher = teacher.x0(x_t, t_B, c)
        with torch.no_grad():
            x_u = teacher.step(x_t, t_B, u_B, c, order=self.solver_order)
            x0_u = two_time_x0(spec, target, x_u, u_B, s_B, c)
            wanted = torch.where((k_B == i_B - 1)[:, None, None, None], x_u, jump(process, x_u, x0_u, u_B, s_B))
            wanted_x0 = two_time_x0(spec, target, wanted, s_B, zero_B, c)
        reached = jump(process, x_t, two_time_x0(spec, student, x_t, t_B, s_B, c), t_B, s_B)
        reached_x0 = two_time_x0(spec, target, reached, s_B, zero_B, c)
        own = two_time_x0(spec, student, x_t, t_B, t_B, c)
        return {
            "consistency": pseudo_huber(reached_x0, wanted_x0, self.huber).mean(),
            "denoising": self.denoising_weight * squared_error(own, x0_teacher).mean(),
        }

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        average_into(networks["target"], networks["student"], warmed_decay(self.target_decay, step))
