"""The native module (kernels/native/bind.cpp). Arrays must be C-contiguous and of exactly these dtypes."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_Float32 = NDArray[np.float32]

def unit_noise(seeds: NDArray[np.uint64], stream: int, out: _Float32, num_threads: int) -> None: ...
def table_row(
    x: _Float32,
    F: _Float32 | None,
    prediction: tuple[float, float],
    clip: float,
    folded: bool,
    weights: tuple[float, float],
    terms: Sequence[tuple[float, _Float32]],
    next_c_in: float,
    out: _Float32,
    x0_out: _Float32 | None,
    scaled_out: _Float32 | None,
    num_threads: int,
) -> None: ...
def combine_guidance(F_u: _Float32, F_c: _Float32, w: _Float32, out: _Float32, num_threads: int) -> None: ...
def to_uint8(x_BCHW: _Float32, out_BHWC: NDArray[np.uint8], num_threads: int) -> None: ...
