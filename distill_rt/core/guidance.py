"""Classifier-free guidance in the one convention of this project: ``F = F_u + w * (F_c - F_u)``, so w = 1 is no guidance."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def combine_guidance(F_u: Array, F_c: Array, w: float | Array, *, rescale: float = 0.0) -> Array:
    """Guided output (Ho & Salimans 2022, equation 6, written with w = 1 + their w).

    Args:
        F_u: output without the condition, shape (B, ...).
        F_c: output with the condition, shape (B, ...).
        w: guidance scale, a number or shape (B,).
        rescale: phi in [0, 1] of Lin et al. 2023 (arXiv 2305.08891, equations 15-16): pulls the per-image standard
            deviation of the guided output back to that of F_c; 0 is off.
    """
    w_B = np.asarray(w, F_c.dtype).reshape(-1, *([1] * (F_c.ndim - 1)))
    F: Array = F_u + w_B * (F_c - F_u)
    if rescale:
        axes = tuple(range(1, F.ndim))
        scale = F_c.std(axis=axes, keepdims=True) / F.std(axis=axes, keepdims=True)
        F = F * (rescale * scale + (1.0 - rescale))
    return F
