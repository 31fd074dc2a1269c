"""Pairs of noise and the image that a model makes of it, made once and drawn again and again.

Made a batch at a time in the first steps of training and kept in the run's checkpoint, so that nothing is made twice. Noise is
kept as its seed (Luhman & Luhman 2021, arXiv 2101.02388, store such pairs before they train).

Legend: N pairs, B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import StepTable
from distill_rt.kernels import unit_noise
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.parallel import gathered
from distill_rt.training.predictor import Conditions
from distill_rt.training.sampling import sample
from distill_rt.training.student import draw_conditions


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Unit noise z, the image x0 that it becomes, both (B, C, H, W), and its conditions."""

    z_BCHW: Tensor
    x0_BCHW: Tensor
    conditions: Conditions


class PairCache(nn.Module):
    """Up to `num_pairs` pairs.

    Args:
        spec: contract of who makes the images; says which conditions are kept.
        num_pairs: N.
    """

    seed_N: Tensor
    x0_NCHW: Tensor
    label_N: Tensor
    w_N: Tensor
    count: Tensor

    def __init__(self, spec: StudentSpec, num_pairs: int) -> None:
        super().__init__()
        if spec.condition.kind == "text":
            raise UsageError(
                f"{spec.name!r} reads prompts, and pairs of noise and image are kept without them",
                code="pairs-without-prompts",
                hint="use a method without pairs: progressive, lcm, vsd, ... (docs/methods.md)",
            )
        self.sample_shape = spec.sample_shape
        self.has_label, self.has_w = spec.condition.kind == "label", spec.guidance.mode != "none"
        self.register_buffer("seed_N", torch.zeros(num_pairs, dtype=torch.int64))
        self.register_buffer("x0_NCHW", torch.zeros(num_pairs, *spec.sample_shape))
        self.register_buffer("label_N", torch.zeros(num_pairs, dtype=torch.int64))
        self.register_buffer("w_N", torch.zeros(num_pairs))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def clear(self) -> None:
        self.count.zero_()

    def next(self, spec: StudentSpec, network: nn.Module, table: StepTable, batch: Batch, draws: Draws) -> Pairs:
        """A batch of pairs: fresh ones until the cache is full, then kept ones at random.

        Args:
            spec, network, table: who makes the images.
            batch: its labels are the conditions of fresh pairs.
        """
        num_pairs, num_made = len(self.seed_N), int(self.count)
        if num_made == num_pairs:
            return self._at(draws.integers(0, num_pairs, Purpose.INDEX))
        conditions = draw_conditions(spec, batch, draws)
        x0 = sample(
            spec,
            [network],
            draws.seeds,
            table=table,
            labels=None if conditions.label_B is None else conditions.label_B.tolist(),
            guidance=conditions.w_B,
        )
        # Every process keeps the pairs of all of them, so that each can draw any pair.
        device = self.x0_NCHW.device
        x0, seed_B = x0.to(device), torch.from_numpy(draws.seeds.view(np.int64)).to(device)
        made = gathered(x0)
        end = min(num_made + len(made), num_pairs)
        kept = slice(0, end - num_made)
        self.seed_N[num_made:end] = gathered(seed_B)[kept]
        self.x0_NCHW[num_made:end] = made[kept]
        if conditions.label_B is not None:
            self.label_N[num_made:end] = gathered(conditions.label_B)[kept]
        if conditions.w_B is not None:
            self.w_N[num_made:end] = gathered(conditions.w_B)[kept]
        self.count.fill_(end)
        return Pairs(z_BCHW=self._noise(seed_B), x0_BCHW=x0, conditions=conditions)

    def _at(self, index_B: Tensor) -> Pairs:
        conditions = Conditions(
            label_B=self.label_N[index_B] if self.has_label else None, w_B=self.w_N[index_B] if self.has_w else None
        )
        return Pairs(z_BCHW=self._noise(self.seed_N[index_B]), x0_BCHW=self.x0_NCHW[index_B], conditions=conditions)

    def _noise(self, seed_B: Tensor) -> Tensor:
        noise = unit_noise(seed_B.cpu().numpy().view(np.uint64), self.sample_shape)
        return torch.from_numpy(noise).to(seed_B.device)
