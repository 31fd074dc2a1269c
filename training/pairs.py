"""Pairs of noise and the image that a model makes of it, made once and drawn again and again.

Made a batch at a time in the first steps of training and kept in the run's checkpoint, so that nothing is made twice. Noise is
kept as its seed (Luhman & Luhman 2021, arXiv 2101.02388, store such pairs before they train). Prompts are kept embedded.

Legend: N pairs, B images, C channels, H rows, W columns, L tokens, D elements of one token's embedding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import StepTable
from distill_rt.kernels import unit_noise
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.parallel import gathered
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.sampling import sample_batch
from distill_rt.training.student import draw_conditions


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Unit noise z, the image x0 that it becomes, both (B, C, H, W), and its conditions."""

    z_BCHW: Tensor
    x0_BCHW: Tensor
    conditions: Conditions


class PairCache(nn.Module):
    """Up to `num_pairs` pairs; where there are prompts, 4 L D bytes for each beside its image.

    Args:
        spec: contract of who makes the images; says which conditions are kept.
        num_pairs: N.
        batch_size: of a training step, all processes and parts together; 0 where every call is a whole one.
    """

    seed_N: Tensor
    x0_NCHW: Tensor
    label_N: Tensor
    w_N: Tensor
    text_NLD: Tensor | None
    count: Tensor

    def __init__(self, spec: StudentSpec, num_pairs: int, batch_size: int = 0) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.sample_shape = spec.sample_shape
        self.has_label, self.has_w = spec.condition.kind == "label", spec.guidance.mode != "none"
        self.register_buffer("seed_N", torch.zeros(num_pairs, dtype=torch.int64))
        self.register_buffer("x0_NCHW", torch.zeros(num_pairs, *spec.sample_shape))
        self.register_buffer("label_N", torch.zeros(num_pairs, dtype=torch.int64))
        self.register_buffer("w_N", torch.zeros(num_pairs))
        prompts = (num_pairs, spec.condition.num_tokens, spec.condition.width)
        self.register_buffer("text_NLD", torch.zeros(prompts) if spec.condition.kind == "text" else None)
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def clear(self) -> None:
        self.count.zero_()

    def next(self, source: Teacher, table: StepTable, batch: Batch, draws: Draws) -> Pairs:
        """A batch of pairs: fresh ones until the cache is full, then kept ones at random.

        Args:
            source, table: who makes the images.
            batch: its labels or prompts are the conditions of fresh pairs.
        """
        num_pairs, whole = len(self.seed_N), self.batch_size or draws.num_samples
        # Places follow from the sample's place in the whole batch, and all parts of a step make pairs or none does: so the
        # pairs are the same for any number of processes and parts.
        before = int(self.count) // whole * whole
        if before >= num_pairs:
            return self._at(draws.integers(0, num_pairs, Purpose.INDEX))
        conditions = draw_conditions(source.spec, batch, draws)
        x0 = sample_batch(source.spec, [source.network], draws.seeds, table, conditions, source.null_text_LD)
        # Every process keeps the pairs of all of them, so that each can draw any pair.
        device = self.x0_NCHW.device
        x0, seed_B = x0.to(device), torch.from_numpy(draws.seeds.view(np.int64)).to(device)
        place = gathered(before + draws.first_sample + torch.arange(len(x0), device=device))
        fits = place < num_pairs
        kept = place[fits]
        self.seed_N[kept] = gathered(seed_B)[fits]
        self.x0_NCHW[kept] = gathered(x0)[fits]
        if conditions.label_B is not None:
            self.label_N[kept] = gathered(conditions.label_B)[fits]
        if conditions.w_B is not None:
            self.w_N[kept] = gathered(conditions.w_B)[fits]
        if self.text_NLD is not None and conditions.text_BLD is not None:
            self.text_NLD[kept] = gathered(conditions.text_BLD)[fits]
        self.count += len(place)
        return Pairs(z_BCHW=self._noise(seed_B), x0_BCHW=x0, conditions=conditions)

    def _at(self, index_B: Tensor) -> Pairs:
        conditions = Conditions(
            label_B=self.label_N[index_B] if self.has_label else None,
            text_BLD=None if self.text_NLD is None else self.text_NLD[index_B],
            w_B=self.w_N[index_B] if self.has_w else None,
        )
        return Pairs(z_BCHW=self._noise(self.seed_N[index_B]), x0_BCHW=self.x0_NCHW[index_B], conditions=conditions)

    def _noise(self, seed_B: Tensor) -> Tensor:
        noise = unit_noise(seed_B.cpu().numpy().view(np.uint64), self.sample_shape)
        return torch.from_numpy(noise).to(seed_B.device)
