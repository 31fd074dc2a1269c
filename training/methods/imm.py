"""Inductive moment matching: the images of two neighbouring times, jumped to the same lower one, are the same in distribution.

Zhou et al. 2025 (IMM, arXiv 2503.07565), algorithm 1, on data alone: within a group of images that share t, r and s, the
student's jumps x_t -> x_s and its own jumps x_r -> x_s without gradient are compared by the maximum mean discrepancy with a
Laplace kernel. x_r is the DDIM point between the image and its x_t, its noise ratio a fixed share of t's.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from distill_rt.core.spec import StudentSpec
from distill_rt.training.consistency import MAX_RATIO, MIN_RATIO
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.flow_map import jump, two_time_contract, two_time_x0
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting
from distill_rt.training.predictor import Conditions, Teacher


@dataclass(frozen=True, kw_only=True, slots=True)
class InductiveMomentMatching(OneStage):
    """Inductive moment matching.

    Args:
        steps: largest plan; every power of two below it is offered too, all deterministic.
        group: images that share their times, M; the batch must be a multiple.
        shrink: share of the noise ratio of t that r keeps.
    """

    name: ClassVar[str] = "imm"
    follows_trajectory: ClassVar[bool] = False

    steps: int = 4
    group: int = 8
    shrink: float = 0.9
    iterations: int = 3000

    def __post_init__(self) -> None:
        check_setting(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        check_setting(
            self.group >= 2 and self.batch_size % self.group == 0,
            f"batch_size must be a multiple of group >= 2, got {self.batch_size} and {self.group}",
        )
        check_setting(0.0 < self.shrink < 1.0, f"shrink must be between 0 and 1, got {self.shrink:g}")

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        return two_time_contract(
            teacher, method=self.name, steps=self.steps, settings=dataclasses.asdict(self), guided=False
        )

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, process = teacher.spec, teacher.process
        c = Conditions(label_B=batch.label_B)
        t_B, share_B = (self._of_group(draws.uniform(p)) for p in (Purpose.TIME, Purpose.SECOND_TIME))
        ratio_B = process.sigma_ratio(t_B).clamp(MIN_RATIO, MAX_RATIO)
        t_B = process.t_from_sigma_ratio(ratio_B).clamp(0.0, 1.0)
        s_B = share_B * t_B
        r_B = torch.maximum(process.t_from_sigma_ratio(self.shrink * ratio_B).clamp(0.0, 1.0), s_B)
        x_t = process.add_noise(batch.x0_BCHW, draws.normal(spec.sample_shape), t_B)
        x_r = jump(process, x_t, batch.x0_BCHW, t_B, r_B)
        with torch.no_grad():
            wanted = jump(process, x_r, two_time_x0(spec, networks["student"], x_r, r_B, s_B, c), r_B, s_B)
        reached = jump(process, x_t, two_time_x0(spec, networks["student"], x_t, t_B, s_B, c), t_B, s_B)
        # What an error of x0 does to the jump: distances are measured in it, so that long and short jumps count alike.
        t, s = process.at(t_B), process.at(s_B)
        scale_B = (s.alpha - s.sigma / t.sigma * t.alpha).clamp(min=1e-3)
        return {"imm": laplace_mmd(reached, wanted, scale_B, self.group).mean()}

    def _of_group(self, value_B: Tensor) -> Tensor:
        """The first value of every group, for all of it."""
        return value_B.reshape(-1, self.group)[:, :1].expand(-1, self.group).flatten()


def laplace_mmd(a_BCHW: Tensor, b_BCHW: Tensor, scale_B: Tensor, group: int) -> Tensor:
    """Squared maximum mean discrepancy of each group of a and b, (B / group,), kernel ``exp(-|x - y| / (scale sqrt(d)))``."""
    a, b = (x.flatten(1).reshape(-1, group, x[0].numel()) for x in (a_BCHW, b_BCHW))
    scale = scale_B.reshape(-1, group)[:, :1, None] * a.shape[-1] ** 0.5

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = (x[:, :, None] - y[:, None, :]).square().sum(dim=-1)
        value: Tensor = torch.exp(-torch.sqrt(squared + 1e-8) / scale).mean(dim=(1, 2))
        return value

    return kernel(a, a) + kernel(b, b) - 2.0 * kernel(a, b)
