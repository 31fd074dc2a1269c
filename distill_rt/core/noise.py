"""Noise that is the same bits on every device, in every batch and at every batch position.

*Integers*: Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC '11). The key is
the image's 64-bit seed (low word, high word), the counter is (block, stream, 0, 0), a block is 4 consecutive elements
of ONE image in NCHW order. So element e of an image is word ``e % 4`` of block ``e // 4``, and nothing but seed, stream
and e decides it.

*Normals*: z = Phi^-1 of a uniform number by the inverse error function in w = -log(4p(1-p)) (Giles 2010, "Approximating
the erfinv function", GPU Computing Gems 2), with our own fit of both branches (tests/core/fit_normal.py makes the
constants). Every float32 operation has one correctly rounded answer, so NumPy, C++ and Triton agree in every bit when
they do exactly these operations in this order, each rounded on its own (no fused multiply-add, no reassociation)::

    k    = int32(bits & 0x7fffffff)
    p    = (float32(k) + 0.5) * 2^-32                                  in (0, 1/2]
    x    = 1 - (p + p)
    t    = (p * 4) * (1 - p)
    i    = bits_of(t) + (0x3f800000 - 0x3f3504f3)                      frexp: t = 2^e * m, m in [sqrt(1/2), sqrt(2))
    e    = float32(int32(i >> 23) - 127)
    f    = float_of((i & 0x007fffff) + 0x3f3504f3) - 1                 m - 1
    log  = e * LN2 + (f + (f * f) * horner(LOG, f))
    w    = -log
    P    = horner(CENTRE, w - 2.5) if w < 5 else horner(TAIL, sqrt(w) - 3)
    z    = float_of(bits_of(x * P) | (bits & 0x80000000))              the top bit is the sign

    horner(c, s) = (...((c[n] * s + c[n-1]) * s + c[n-2])...) * s + c[0]

Stream 0 is the initial noise, stream i + 1 the noise of step i, streams from `EXTRA_STREAM_BASE` on serve other
purposes.
`distill_rt.kernels.unit_noise` gives the same bits faster; this file is the specification.

Legend: B images.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError

UInt32 = NDArray[np.uint32]
UInt64 = NDArray[np.uint64]
Float32 = NDArray[np.float32]

INITIAL_STREAM = 0
EXTRA_STREAM_BASE = 1 << 16
"""First stream for purposes other than the initial noise and the noise of steps."""

NUM_SEEDS = 1 << 64
NUM_STREAMS = 1 << 32

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEPS = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))  # golden ratio and sqrt(3) - 1
_LOW_WORD, _WORD_BITS = np.uint64(0xFFFFFFFF), np.uint64(32)
_NUM_ROUNDS = 10

_LN2 = np.float32(0.693147182)
_ROOT_HALF_BITS = 0x3F3504F3
# Lowest power first, as printed by tests/core/fit_normal.py; kernels/native/normal.h holds the same numbers.
LOG = (-0.500005841, 0.333352625, -0.249614656, 0.198882774, -0.173259959, 0.163356408, -0.100346081)
CENTRE = (2.12331319, 0.348803639, -0.00590612181, -0.00177431689, 0.000307359558, -5.79007246e-06, -4.50551988e-06,
          4.46372951e-07)  # fmt: skip
TAIL = (4.00643492, 1.4165951, 0.0133382948, -0.0109350942, 0.00819587708, -0.00474983687, 0.00163665228,
        -0.00023939008)  # fmt: skip


def step_stream(i: int) -> int:
    """Noise stream of step i (0-based): i + 1."""
    if not 0 <= i < EXTRA_STREAM_BASE - 1:
        raise UsageError(
            f"a step index must be 0..{EXTRA_STREAM_BASE - 2}, got {i}", code="step-out-of-range", details={"step": i}
        )
    return i + 1


def image_seeds(seed: int, num_images: int) -> UInt64:
    """Seeds of the images of one request: image k has seed + k modulo 2**64. Shape (num_images,)."""
    first = int(seed_array([seed])[0])
    return np.array([(first + k) % NUM_SEEDS for k in range(num_images)], np.uint64)


def seed_array(seeds: Sequence[int] | NDArray[Any]) -> UInt64:
    """Seeds as uint64, shape (B,).

    Raises:
        UsageError: a seed is not an integer of 0..2**64-1 (code ``seed-out-of-range`` or ``seed-type``).
    """
    if isinstance(seeds, np.ndarray) and seeds.dtype == np.uint64 and seeds.ndim == 1:
        return seeds
    try:
        values = [operator.index(seed) for seed in seeds]
    except TypeError as error:
        raise UsageError(
            f"seeds must be a list of integers: {error}", code="seed-type", hint="give one integer per image"
        ) from error
    for value in values:
        if not 0 <= value < NUM_SEEDS:
            raise UsageError(
                f"a seed must be 0..2**64-1, got {value}",
                code="seed-out-of-range",
                hint="take it modulo 2**64",
                details={"seed": str(value)},
            )
    return np.array(values, np.uint64)


def philox4x32(
    counter0: Any, counter1: Any, key0: Any, key1: Any, *, counter2: Any = 0, counter3: Any = 0
) -> tuple[UInt32, UInt32, UInt32, UInt32]:
    """Philox4x32-10: four random words per counter and key (Salmon et al. 2011, section 3.3 and table 2).

    Args:
        counter0..counter3, key0, key1: unsigned 32-bit words, numbers or arrays that broadcast together.
    """
    c0, c1, c2, c3, k0, k1 = (
        np.asarray(word, np.uint64) for word in (counter0, counter1, counter2, counter3, key0, key1)
    )
    for _ in range(_NUM_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _WORD_BITS) ^ c1 ^ k0,
            product1 & _LOW_WORD,
            (product0 >> _WORD_BITS) ^ c3 ^ k1,
            product0 & _LOW_WORD,
        )
        k0, k1 = (k0 + _KEY_STEPS[0]) & _LOW_WORD, (k1 + _KEY_STEPS[1]) & _LOW_WORD
    words = np.broadcast_arrays(c0, c1, c2, c3)
    return (
        words[0].astype(np.uint32),
        words[1].astype(np.uint32),
        words[2].astype(np.uint32),
        words[3].astype(np.uint32),
    )


def uniform_bits(seeds: Sequence[int] | NDArray[Any], num: int, stream: int) -> UInt32:
    """`num` random words per image, shape (B, num): the integers under `unit_noise`."""
    check_draw(num, stream)
    seeds_B = seed_array(seeds)
    blocks = np.arange(-(-num // 4), dtype=np.uint64)
    words = philox4x32(blocks, stream, (seeds_B & _LOW_WORD)[:, None], (seeds_B >> _WORD_BITS)[:, None])
    return np.stack(words, axis=-1).reshape(len(seeds_B), 4 * len(blocks))[:, :num]


def check_draw(num: int, stream: int) -> None:
    """Raise `UsageError` if the number of elements of one image or the stream is outside what the counter can hold."""
    if not 0 <= num <= 4 * (1 << 32):
        raise UsageError(f"an image must have 0..2**34 elements, got {num}", code="noise-size", details={"num": num})
    if not 0 <= stream < NUM_STREAMS:
        raise UsageError(
            f"a noise stream must be 0..2**32-1, got {stream}", code="stream-out-of-range", details={"stream": stream}
        )


def unit_noise(seeds: Sequence[int] | NDArray[Any], shape: tuple[int, ...], stream: int = INITIAL_STREAM) -> Float32:
    """Unit normal noise of one stream for a batch of images.

    Args:
        seeds: one 64-bit seed per image.
        shape: of ONE image, usually (C, H, W).
        stream: `INITIAL_STREAM`, `step_stream(i)`, or `EXTRA_STREAM_BASE` and up.

    Returns:
        float32 (B, *shape); every value is finite and |z| < 6.4.
    """
    bits = uniform_bits(seeds, math.prod(shape), stream)
    return normal_from_bits(bits).reshape(len(bits), *shape)


def normal_from_bits(bits: UInt32) -> Float32:
    """Standard normal numbers from random words, any shape (module docstring).

    The relative error against Phi^-1(p) is below 1e-6 everywhere.
    """
    assert bits.dtype == np.uint32, bits.dtype
    shape = bits.shape
    bits = bits.reshape(-1)
    k = (bits & np.uint32(0x7FFFFFFF)).astype(np.int32)
    p = (k.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    x = np.float32(1) - (p + p)
    w = -_log((p * np.float32(4)) * (np.float32(1) - p))
    ratio = _horner(CENTRE, w - np.float32(2.5))
    tail = w >= np.float32(5)  # 0.3 % of all draws, so NumPy computes this branch only where it is taken
    ratio[tail] = _horner(TAIL, np.sqrt(w[tail]) - np.float32(3))
    z: UInt32 = (x * ratio).view(np.uint32) | (bits & np.uint32(0x80000000))
    return z.view(np.float32).reshape(shape)


def _log(t: Float32) -> Float32:
    """Natural logarithm of normal positive float32, absolute error below 1e-7 + 6e-8 |log t|."""
    i = t.view(np.uint32) + np.uint32(0x3F800000 - _ROOT_HALF_BITS)
    e = ((i >> np.uint32(23)).astype(np.int32) - np.int32(127)).astype(np.float32)
    f: Any = ((i & np.uint32(0x007FFFFF)) + np.uint32(_ROOT_HALF_BITS)).view(np.float32) - np.float32(1)
    log: Float32 = e * _LN2 + (f + (f * f) * _horner(LOG, f))
    return log


def _horner(coefficients: tuple[float, ...], s: Float32) -> Float32:
    total = np.full_like(s, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * s + np.float32(coefficient)
    return total
