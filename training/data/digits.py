"""Handwritten digits: real data that comes with a package and trains in a minute."""

from __future__ import annotations

import torch

from distill_rt.core.optional import require
from distill_rt.training.data.base import TensorDataset


def digits() -> TensorDataset:
    """The 1,797 handwritten digits of scikit-learn (UCI optical recognition, 8x8, 17 grey levels), 10 classes."""
    data = require("sklearn.datasets", extra="train").load_digits()
    images = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8.0 - 1.0
    return TensorDataset(x0_NCHW=images, label_N=torch.tensor(data.target, dtype=torch.int64), num_classes=10)
