"""Unit noise inside of a kernel: `distill_rt.core.noise` in registers, the same float32 bits.

The operations and their order are the ones of that module's docstring. Every one of them has one correctly rounded
answer, provided that nothing is fused or approximated: kernels that call this are compiled with
``enable_fp_fusion=False`` and take the square root with ``sqrt_rn`` (tests read the PTX for it).

Legend: N elements of one program's block, a multiple of 4.
"""

# Parameters of kernels are values on the device and have no Python types.
# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false

from __future__ import annotations

import triton
import triton.language as tl

from distill_rt.core import noise

# A kernel may only read globals that are compile-time constants.
_LOG = tl.constexpr(noise.LOG)
_CENTRE = tl.constexpr(noise.CENTRE)
_TAIL = tl.constexpr(noise.TAIL)
_LN2 = tl.constexpr(0.693147182)
_ROOT_HALF_BITS = tl.constexpr(0x3F3504F3)
_EXPONENT_SHIFT = tl.constexpr(0x3F800000 - 0x3F3504F3)


@triton.jit
def unit_noise(seed, stream, first_block, BLOCK: tl.constexpr):
    """float32 (BLOCK,) noise of the elements from ``4 * first_block`` on.

    Args:
        seed: int64 scalar, the 64 bits of the image's seed.
        stream: uint32 scalar.
        first_block: int32 scalar, the Philox counter of the first four elements.
    """
    word0, word1, word2, word3 = philox_words(seed, stream, first_block, BLOCK // 4)
    # Interleaved to element order: words 0..3 of a block are its elements 0..3.
    bits = tl.reshape(tl.join(tl.join(word0, word2), tl.join(word1, word3)), (BLOCK,))
    return normal_from_bits(bits)


@triton.jit
def philox_words(seed, stream, first_block, NUM: tl.constexpr):
    """Four uint32 words of each of NUM consecutive blocks: Philox4x32-10, counter (block, stream, 0, 0)."""
    counter0 = (first_block + tl.arange(0, NUM)).to(tl.uint32)
    counter1 = tl.full((NUM,), 0, tl.uint32) + stream
    counter2 = tl.full((NUM,), 0, tl.uint32)
    counter3 = tl.full((NUM,), 0, tl.uint32)
    key0 = seed.to(tl.uint32)
    key1 = (seed >> 32).to(tl.uint32)
    for _ in range(10):  # unrolled by LLVM; unrolled here it would only compile more slowly
        product0 = counter0.to(tl.uint64) * 0xD2511F53
        product1 = counter2.to(tl.uint64) * 0xCD9E8D57
        counter0 = (product1 >> 32).to(tl.uint32) ^ counter1 ^ key0
        counter2 = (product0 >> 32).to(tl.uint32) ^ counter3 ^ key1
        counter1 = product1.to(tl.uint32)
        counter3 = product0.to(tl.uint32)
        key0 = key0 + 0x9E3779B9
        key1 = key1 + 0xBB67AE85
    return counter0, counter1, counter2, counter3


@triton.jit
def normal_from_bits(bits):
    """Standard normal float32 from random uint32 words."""
    k = (bits & 0x7FFFFFFF).to(tl.int32).to(tl.float32)
    p = (k + 0.5) * 2.3283064365386963e-10  # 2^-32
    x = 1.0 - (p + p)
    w = -_log((p * 4.0) * (1.0 - p))
    # Both branches always: 0.3 % of the draws take the second one, so nearly every warp would run both anyhow.
    centre = _horner(_CENTRE, 7, w - 2.5)
    tail = _horner(_TAIL, 7, tl.sqrt_rn(w) - 3.0)
    z = x * tl.where(w < 5.0, centre, tail)
    return (z.to(tl.uint32, bitcast=True) | (bits & 0x80000000)).to(tl.float32, bitcast=True)


@triton.jit
def _log(t):
    i = t.to(tl.uint32, bitcast=True) + _EXPONENT_SHIFT
    e = ((i >> 23).to(tl.int32) - 127).to(tl.float32)
    f = ((i & 0x007FFFFF) + _ROOT_HALF_BITS).to(tl.float32, bitcast=True) - 1.0
    return e * _LN2 + (f + (f * f) * _horner(_LOG, 6, f))


@triton.jit
def _horner(COEFFICIENTS: tl.constexpr, DEGREE: tl.constexpr, s):
    total = tl.full(s.shape, COEFFICIENTS[DEGREE], tl.float32)
    for j in tl.static_range(1, DEGREE + 1):
        total = total * s + COEFFICIENTS[DEGREE - j]
    return total
