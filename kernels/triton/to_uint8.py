"""Images in [-1, 1] to bytes, planes to pixels: `distill_rt.kernels.reference.to_uint8`, the same bytes.

Legend: B images, C channels, H x W pixels, N = C * H * W.
"""

# Parameters of kernels are values on the device and have no Python types.
# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def to_uint8(x_ptr, out_ptr, num, num_pixels, num_channels, x_stride, BLOCK: tl.constexpr):
    """out = (x + 1) * 127.5 rounded half to even and clamped to 0..255, NaN -> 0. Grid (ceil(N / BLOCK), B).

    Args:
        x_ptr: (B, C, H, W), images x_stride elements apart.
        out_ptr: uint8 (B, H, W, C), contiguous.
        num: N; num_pixels: H * W; num_channels: C.
    """
    image = tl.program_id(1).to(tl.int64)
    offset = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)  # of the bytes, so that writing is contiguous
    inside = offset < num
    pixel = offset // num_channels
    channel = offset - pixel * num_channels
    x = tl.load(x_ptr + image * x_stride + channel * num_pixels + pixel, mask=inside, other=0.0).to(tl.float32)
    value = (x + 1.0) * 127.5
    value = tl.where(value > 0.0, value, 0.0)  # NaN is not above zero
    value = tl.where(value < 255.0, value, 255.0)
    # At 2^23 one unit is the last place, so this addition rounds half to even and the low bits are the integer.
    bits = (value + 8388608.0).to(tl.uint32, bitcast=True)
    tl.store(out_ptr + image * num + offset, bits.to(tl.uint8), mask=inside)
