"""What every kernel computes, in NumPy: the readable specification that the fast paths must equal bit for bit.

Noise is specified in `distill_rt.core.noise`, guidance in `distill_rt.core.guidance`, whole tables in
`distill_rt.core.table.run_table`; here is one row at a time, and the way from the decoder to pixels.

Legend: B images, C channels, H x W pixels; x, F, z, x0 have one common shape (B, ...).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.guidance import combine_guidance
from distill_rt.core.noise import unit_noise
from distill_rt.core.table import Row, predict_x0

__all__ = ["apply_row", "combine_guidance", "to_uint8", "unit_noise"]

Float32 = NDArray[np.float32]


def apply_row(
    row: Row,
    x: Float32,
    F: Float32 | None,
    z: Float32 | None,
    history: Sequence[Float32],
    anchor: Float32 | None,
    *,
    wants_x0: bool,
) -> tuple[Float32, Float32 | None]:
    """(x_next, x0) of one row in float32, terms added left to right as in `run_table`.

    Args:
        row: needs F if it calls a network, z if it draws noise, history and anchor if it weights them.
        history: earlier predictions, newest first.
        wants_x0: without it a row that folds leaves x0 out and returns None in its place.
    """
    cast = np.float32
    x0: Any = None
    total: Any = cast(row.r) * x
    if F is not None:
        if wants_x0 or not row.is_affine:
            x0 = predict_x0(row, x, F)
        if row.is_affine:
            a, b, _ = row.folded()
            total = cast(a) * x + cast(b) * F
        else:
            total = total + cast(row.g) * x0
            if row.f:
                total = total + cast(row.f) * F
    terms: list[tuple[float, Any]] = [
        *zip((row.h1, row.h2, row.h3), history, strict=False),
        (row.k, anchor),
        (row.n, z),
    ]
    for weight, buffer in terms:
        if weight:
            total = total + cast(weight) * buffer
    return total, x0


def to_uint8(x_BCHW: Float32) -> NDArray[np.uint8]:
    """Images in [-1, 1] as bytes (B, H, W, C): (x + 1) * 127.5 rounded half to even and clamped to 0..255, NaN -> 0."""
    value = (x_BCHW + np.float32(1)) * np.float32(127.5)
    value = np.where(value > 0, value, np.float32(0))  # NaN is not above zero
    pixels: NDArray[np.uint8] = np.rint(np.minimum(value, np.float32(255))).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
