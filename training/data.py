"""Data sets: images in [-1, 1] with optional labels, drawn by counter so that every step's batch can be drawn again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from distill_rt.core.errors import UsageError
from distill_rt.core.optional import require
from distill_rt.training.draws import Draws, Purpose


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """x0 (B, C, H, W) in [-1, 1] (or unit scale for toy data); label (B,) int64, or None."""

    x0_BCHW: Tensor
    label_B: Tensor | None


class Dataset(Protocol):
    """What a trainer asks of data."""

    @property
    def sample_shape(self) -> tuple[int, int, int]: ...

    @property
    def num_classes(self) -> int:
        """0 for data without labels."""
        ...

    def batch(self, draws: Draws) -> Batch:
        """One batch of `draws.num_samples`, decided by the draws alone."""
        ...


@dataclass(frozen=True, kw_only=True)
class TensorDataset:
    """A data set that fits in memory, drawn with replacement."""

    x0_NCHW: Tensor
    label_N: Tensor | None
    num_classes: int

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        c, h, w = self.x0_NCHW.shape[1:]
        return c, h, w

    def batch(self, draws: Draws) -> Batch:
        index = draws.integers(0, len(self.x0_NCHW), Purpose.INDEX)
        return Batch(x0_BCHW=self.x0_NCHW[index], label_B=None if self.label_N is None else self.label_N[index])


def digits() -> TensorDataset:
    """The 1,797 handwritten digits of scikit-learn (UCI optical recognition, 8x8, 17 grey levels), 10 classes."""
    data = require("sklearn.datasets", extra="train").load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8.0 - 1.0
    return TensorDataset(x0_NCHW=images, label_N=torch.tensor(data.target, dtype=torch.int64), num_classes=10)


@dataclass(frozen=True, kw_only=True)
class Grid25:
    """25 Gaussians on a 5x5 grid, unit standard deviation overall, 0.049 per mode; fresh samples for ever.

    Points are (2, 1, 1) "images". With `labelled`, the label is the column of the grid (5 classes).
    """

    labelled: bool = False

    spacing = 0.7062  # variance of the grid's positions (2 * spacing^2) plus 0.049^2 is 1
    mode_std = 0.049

    @property
    def sample_shape(self) -> tuple[int, int, int]:
        return 2, 1, 1

    @property
    def num_classes(self) -> int:
        return 5 if self.labelled else 0

    def batch(self, draws: Draws) -> Batch:
        mode = draws.integers(0, 25, Purpose.INDEX)
        column, row = mode % 5, mode // 5
        centre = (torch.stack([column, row], 1).float() - 2.0) * self.spacing
        points = centre + self.mode_std * draws.normal((2,), Purpose.DATA)
        return Batch(x0_BCHW=points[:, :, None, None], label_B=column if self.labelled else None)


DATASETS: Mapping[str, Callable[[], Dataset]] = {
    "digits": digits,
    "grid25": Grid25,
    "grid25-labelled": lambda: Grid25(labelled=True),
}


def load_dataset(name: str) -> Dataset:
    """A data set by name."""
    if name not in DATASETS:
        raise UsageError(
            f"data set {name!r} is unknown", code="dataset-unknown", hint=f"one of: {', '.join(sorted(DATASETS))}"
        )
    return DATASETS[name]()
