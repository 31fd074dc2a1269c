"""The initial state of every image from its seed: ``x = init_scale * z``, and the first network input beside it.

Legend: B images, N elements of one image.
"""

# Parameters of kernels are values on the device and have no Python types.
# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false

from __future__ import annotations

import triton
import triton.language as tl

from distill_rt.kernels.triton import row_layout
from distill_rt.kernels.triton.noise import unit_noise

_N = tl.constexpr(row_layout.WORD["n"])
_NEXT_C_IN = tl.constexpr(row_layout.WORD["next_c_in"])
_STREAM = tl.constexpr(row_layout.WORD["stream"])


@triton.jit
def philox_normal(
    out_ptr, scaled_ptr, row_ptr, seeds_ptr,
    num, state_stride, scaled_stride, copy_stride, num_copies,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """out = n * z, scaled = next_c_in * out. Grid (ceil(N / BLOCK), B).

    Args:
        out_ptr: state, (B, N), images state_stride elements apart. With n = 1 it is `distill_rt.core.noise.unit_noise`.
        scaled_ptr: in the network's dtype, images scaled_stride apart, num_copies times copy_stride apart.
        row_ptr: packed row (`row_layout.pack_start`), of which n, stream and next_c_in count.
        seeds_ptr: int64 (B,), the bits of the images' seeds.
        num: N.
    """
    image = tl.program_id(1).to(tl.int64)
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = offset < num
    stream = tl.load(row_ptr + _STREAM).to(tl.uint32, bitcast=True)
    z = unit_noise(tl.load(seeds_ptr + image), stream, tl.program_id(0) * (BLOCK // 4), BLOCK)
    x = tl.load(row_ptr + _N) * z
    tl.store(out_ptr + image * state_stride + offset, x, mask=inside)
    scaled = tl.load(row_ptr + _NEXT_C_IN) * x
    for copy in range(num_copies):
        tl.store(scaled_ptr + copy * copy_stride + image * scaled_stride + offset, scaled, mask=inside)
