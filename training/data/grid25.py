"""Points on a grid: a distribution whose modes can be counted."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from distill_rt.training.data.base import Batch
from distill_rt.training.draws import Draws, Purpose


@dataclass(frozen=True, kw_only=True)
class Grid25:
    """25 Gaussians on a 5x5 grid, unit standard deviation overall, 0.049 per mode; fresh samples for ever.

    Points are (2, 1, 1) "images". With `labelled`, the label is the column of the grid (5 classes).
    """

    labelled: bool = False

    spacing = 0.7062  # variance of the grid's positions (2 * spacing^2) plus 0.049^2 is 1
    mode_std = 0.049
    has_captions = False

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
