"""Trajectory consistency distillation: jumps to any lower level of a segment agree, and the sampler jumps below and noises up.

Zheng et al. 2024 (TCD, arXiv 2402.19159), equation 19, with segments of Hyper-SD (Ren et al. 2024, arXiv 2404.13686): for s
drawn between the end of t's segment and u, the student's DDIM jump x_t -> x_s regresses on a slow copy's x_u -> x_s, u one
teacher step below t. The student knows one time, so one x0 must serve all s; `gamma` of its sampler says how far below the
next level it jumps first.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from distill_rt.core.samplers.tcd import tcd
from distill_rt.core.spec import StudentSpec
from distill_rt.training.consistency import both_ends
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.flow_map import jump
from distill_rt.training.losses import pseudo_huber
from distill_rt.training.methods.base import Networks, Phase, check_setting
from distill_rt.training.methods.pcm import PhasedConsistency
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Teacher
from distill_rt.training.student import distilled_contract, draw_conditions

DEFAULT_SEGMENTS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryConsistency(PhasedConsistency):
    """Trajectory consistency.

    Args:
        steps: of the plan.
        segments: of the trajectory, at most `steps`, because no jump was trained that leaves its segment; 0 is the smaller of 4
            and `steps`.
        gamma: of the sampler, 0 to 1.

    The others as in PCM.
    """

    name: ClassVar[str] = "tcd"

    segments: int = 0
    gamma: float = 0.1

    def __post_init__(self) -> None:
        PhasedConsistency.__post_init__(self)
        check_setting(self.segments >= 0, f"segments must not be negative, got {self.segments}")
        check_setting(
            self.segments <= self.steps,
            f"{self.steps} steps jump further than the {self.segments} segments that the student learns to cross",
        )
        check_setting(0.0 <= self.gamma <= 1.0, f"gamma must be 0 to 1, got {self.gamma:g}")

    @property
    def num_segments(self) -> int:
        return self.segments or min(DEFAULT_SEGMENTS, self.steps)

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        times = uniform_times(self.steps)
        plans = {self.steps: tcd(teacher.process, teacher.parameterization, times, gamma=self.gamma)}
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        process, length = teacher.process, self.levels_per_phase
        num_levels = self.num_segments * length
        conditions = draw_conditions(teacher.spec, batch, draws)
        i_B = draws.integers(1, num_levels + 1, Purpose.TIME)
        end_B = (i_B - 1) // length * length
        # Uniform among the levels from the segment's end to u.
        target_B = end_B + (draws.uniform(Purpose.SECOND_TIME) * (i_B - end_B)).long()
        t_B, u_B, s_B = i_B / num_levels, (i_B - 1) / num_levels, target_B / num_levels
        x_t = process.add_noise(batch.x0_BCHW, draws.normal(teacher.spec.sample_shape), t_B)
        x_u = teacher.step(x_t, t_B, u_B, conditions, order=self.solver_order)
        x0_t, x0_u = both_ends(
            teacher.spec, networks["student"], networks["target"], (x_t, x_u), (t_B, u_B), conditions
        )
        wanted = torch.where((target_B == i_B - 1)[:, None, None, None], x_u, jump(process, x_u, x0_u, u_B, s_B))
        reached = jump(process, x_t, x0_t, t_B, s_B)
        return {"tcd": pseudo_huber(reached, wanted, self.huber).mean()}
