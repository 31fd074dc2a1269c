"""The bound of a dynamic threshold: one quantile of |x0| per image (Saharia et al. 2022, section 2.3).

A radix selection over the bits of |x0|, which order like the numbers: eight passes, each of which counts the sixteen
values of the next four bits among the elements that agree with the digits found so far, and a ninth for the next larger
value. Interpolated like ``numpy.quantile(..., method="linear")``: rank in float64, interpolation in float32. Every pass
computes x0 again, which costs reading x and F from the cache and needs no buffer. Counts are integers, so the answer does
not depend on the order of anything.

One program per image: meant for the pixel-space models that threshold (64x64x3 to 256x256x3), which are the only ones.

Legend: B images, N elements of one image.
"""

# Parameters of kernels are values on the device and have no Python types.
# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false

from __future__ import annotations

import triton
import triton.language as tl

from distill_rt.kernels.triton import row_layout
from distill_rt.kernels.triton.guidance import network_output

_P = tl.constexpr(row_layout.WORD["p"])
_Q = tl.constexpr(row_layout.WORD["q"])
_RATIO = tl.constexpr(row_layout.WORD["threshold_ratio"])
_MAX = tl.constexpr(row_layout.WORD["threshold_max"])
_DIGIT_BITS = tl.constexpr(4)
_NUM_VALUES = tl.constexpr(16)
_NUM_DIGITS = tl.constexpr(8)
_UNROLL = tl.constexpr(4)  # loads under way at once: one program has to hide the memory's latency by itself
_INFINITY_BITS = tl.constexpr(0x7F800000)
_LARGEST = tl.constexpr(0x7FFFFFFF)


@triton.jit
def dynamic_threshold(
    x_ptr, F_ptr, F_u_ptr, row_ptr, w_ptr, factor_ptr, bound_ptr,
    num, state_stride, F_stride,
    GUIDED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """bound[b] = clip(quantile(|p*x + q*F|, threshold_ratio), 1, threshold_max), NaN if any x0 is. Grid (B,).

    Arguments as for `table_row`, which reads bound[b] afterwards.
    """
    image = tl.program_id(0).to(tl.int64)
    x_ptr += image * state_stride
    F_offset = image * F_stride
    ratio = tl.load(row_ptr + _RATIO)
    position = tl.cast(num - 1, tl.float64) * ratio.to(tl.float64)
    rank = position.to(tl.int32)  # of the element at or below the quantile
    gamma = position - rank.to(tl.float64)

    digits = tl.arange(0, _NUM_VALUES)
    prefix = 0  # the digits of that element found so far
    ahead = rank  # its rank among the elements with this prefix
    equal = num  # how many those are
    for step in range(_NUM_DIGITS):
        shift = (_NUM_DIGITS - 1 - step) * _DIGIT_BITS
        counts = tl.zeros((BLOCK, _NUM_VALUES), tl.int32)
        for first in range(0, num, BLOCK * _UNROLL):
            for part in tl.static_range(_UNROLL):
                offset = first + part * BLOCK + tl.arange(0, BLOCK)
                inside = offset < num
                bits = _magnitude(
                    x_ptr, F_ptr, F_u_ptr, row_ptr, w_ptr, factor_ptr, image, F_offset, offset, inside, GUIDED
                )
                rest = bits >> shift
                counted = inside & ((rest >> _DIGIT_BITS) == prefix)
                digit = rest & (_NUM_VALUES - 1)
                counts += (counted[:, None] & (digit[:, None] == digits[None, :])).to(tl.int32)
        count = tl.sum(counts, 0)
        up_to = tl.cumsum(count, 0)
        found = tl.sum((up_to <= ahead).to(tl.int32), 0)
        ahead = ahead - tl.sum(tl.where(digits < found, count, 0), 0)
        equal = tl.sum(tl.where(digits == found, count, 0), 0)
        prefix = (prefix << _DIGIT_BITS) | found

    # The next element in order: the same value again, or the smallest larger one. NaN has the largest bits of all.
    larger = tl.full((BLOCK,), _LARGEST, tl.int32)
    largest = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, num, BLOCK):
        offset = first + tl.arange(0, BLOCK)
        inside = offset < num
        bits = _magnitude(x_ptr, F_ptr, F_u_ptr, row_ptr, w_ptr, factor_ptr, image, F_offset, offset, inside, GUIDED)
        larger = tl.minimum(larger, tl.where(inside & (bits > prefix), bits, _LARGEST))
        largest = tl.maximum(largest, tl.where(inside, bits, 0))
    following = tl.min(larger, 0)
    following = tl.where((ahead + 1 < equal) | (following == _LARGEST), prefix, following)
    low = tl.cast(prefix, tl.float32, bitcast=True)
    high = following.to(tl.float32, bitcast=True)
    difference = high - low
    from_low = low + difference * gamma.to(tl.float32)
    from_high = high - difference * (1.0 - gamma).to(tl.float32)
    quantile = tl.where(gamma >= 0.5, from_high, from_low)
    if tl.max(largest, 0) > _INFINITY_BITS:
        quantile = float("nan")
    # In this order, so that NaN stays NaN.
    quantile = tl.where(quantile < 1.0, 1.0, quantile)
    limit = tl.load(row_ptr + _MAX)
    tl.store(bound_ptr + image, tl.where(quantile > limit, limit, quantile))


@triton.jit
def _magnitude(
    x_ptr, F_ptr, F_u_ptr, row_ptr, w_ptr, factor_ptr, image, F_offset, offset, inside, GUIDED: tl.constexpr
):  # fmt: skip
    """Bits of |x0| as int32, which order like the numbers."""
    x = tl.load(x_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    F = network_output(F_ptr, F_u_ptr, w_ptr, factor_ptr, image, F_offset + offset, inside, GUIDED)
    x0 = tl.load(row_ptr + _P) * x + tl.load(row_ptr + _Q) * F
    return x0.to(tl.int32, bitcast=True) & _LARGEST
