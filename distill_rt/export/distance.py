"""How far two arrays are apart, in the three figures of the gate."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.artifacts import Distance

Array = NDArray[Any]

PSNR_CAP_DB = 200.0
"""PSNR of equal arrays, which would be infinite; float32 cannot tell images apart beyond about 150 dB."""


def typical_norm(rows: Array) -> float:
    """Root mean square of the rows' L2 norms; 1 if all are zero."""
    flat = rows.reshape(len(rows), -1).astype(np.float64)
    return math.sqrt(float((flat**2).sum()) / len(flat)) or 1.0


def distance(got: Array, want: Array, norm: float) -> Distance:
    """The worst row: largest relative L2, smallest PSNR and cosine over the first axis.

    Relative L2 is ||got - want|| / norm, PSNR is 10 log10(2^2 / mean square error), for the range [-1, 1]. Computed in
    float64.

    Args:
        norm: `typical_norm` of everything golden of this kind. A row's own norm would make errors of nearly empty rows look
            large, which nobody sees and no precision avoids.
    """
    got, want = (array.reshape(len(array), -1).astype(np.float64) for array in (got, want))
    norm_got, norm_want = np.linalg.norm(got, axis=1), np.linalg.norm(want, axis=1)
    difference = np.linalg.norm(got - want, axis=1)
    norms = norm_got * norm_want
    cosine = np.where(norms > 0, (got * want).sum(axis=1) / np.where(norms > 0, norms, 1.0), norm_got == norm_want)
    error = float((difference**2).max()) / got.shape[1]
    psnr = PSNR_CAP_DB if error == 0 else min(PSNR_CAP_DB, 10 * math.log10(4 / error))
    return Distance(relative_l2=float(difference.max()) / norm, psnr_db=psnr, cosine=float(cosine.min()))


def worst(distances: Iterable[Distance]) -> Distance:
    """The worst of each figure."""
    all_distances = list(distances)
    return Distance(
        relative_l2=max(item.relative_l2 for item in all_distances),
        psnr_db=min(item.psnr_db for item in all_distances),
        cosine=min(item.cosine for item in all_distances),
    )


def within(distance: Distance, bar: Distance) -> bool:
    """Whether every figure is on the right side of its bar."""
    return distance.relative_l2 <= bar.relative_l2 and distance.psnr_db >= bar.psnr_db and distance.cosine >= bar.cosine
