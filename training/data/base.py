"""What data are to a trainer: batches of images in [-1, 1], decided by the draws alone.

Legend: B samples of a batch, N of a data set, C channels, H rows, W columns, L tokens,
D elements of one token's embedding.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from distill_rt.training.draws import Draws, Purpose


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """x0 (B, C, H, W) in [-1, 1] (or unit scale for toy data); label (B,) int64, captions (B,) and their embeddings (B, L, D).

    None where there are none.
    """

    x0_BCHW: Tensor
    label_B: Tensor | None
    captions_B: tuple[str, ...] | None = None
    text_BLD: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        label_B = None if self.label_B is None else self.label_B.to(device)
        text_BLD = None if self.text_BLD is None else self.text_BLD.to(device)
        return dataclasses.replace(self, x0_BCHW=self.x0_BCHW.to(device), label_B=label_B, text_BLD=text_BLD)


class Dataset(Protocol):
    """What a trainer asks of data."""

    @property
    def sample_shape(self) -> tuple[int, int, int]: ...

    @property
    def num_classes(self) -> int:
        """0 for data without labels."""
        ...

    @property
    def has_captions(self) -> bool: ...

    def batch(self, draws: Draws) -> Batch:
        """One batch of `draws.num_samples`, decided by the draws alone, on the processor."""
        ...


@dataclass(frozen=True, kw_only=True)
class TensorDataset:
    """A data set that fits in memory, drawn with replacement."""

    x0_NCHW: Tensor
    label_N: Tensor | None
    num_classes: int

    has_captions = False

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        c, h, w = self.x0_NCHW.shape[1:]
        return c, h, w

    def batch(self, draws: Draws) -> Batch:
        index = draws.integers(0, len(self.x0_NCHW), Purpose.INDEX)
        return Batch(x0_BCHW=self.x0_NCHW[index], label_B=None if self.label_N is None else self.label_N[index])
