"""One row of a step table as sixteen 32-bit words: what the kernels read from device memory.

=====  ================  ==========================================================================================
 word   name              meaning
=====  ================  ==========================================================================================
   0    x_weight          weight of x: a of a folded row, else r
   1    second_weight     weight of F in a folded row (b), else of x0 (g)
   2, 3 p, q              x0 = p*x + q*F
   4    clip              x0 is clamped to [-clip, clip]; infinity: not at all
   5    threshold_ratio   quantile of |x0| that bounds x0 (dynamic threshold); 0: none
   6    threshold_max     upper limit of that bound
   7    f                 weight of F beside x0; 0 in a folded row
   8..10 h1, h2, h3       weights of earlier predictions, newest first
  11    k                 weight of the anchor
  12    n                 weight of the noise
  13    next_c_in         scale of the second output, the next row's network input
  14    stream            noise stream, an unsigned integer
  15    flags             unsigned integer: CALLS_NETWORK, FOLDED, KEEPS_X0
=====  ================  ==========================================================================================

Weights that are zero switch their buffer off: it is not read. Words 14 and 15 hold the bits of integers, so copy rows as
bytes and never compute with those columns.

Legend: N rows, K = NUM_WORDS.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.noise import INITIAL_STREAM
from distill_rt.core.table import Row, StepTable

Float32 = NDArray[np.float32]

COLUMNS = (
    "x_weight", "second_weight", "p", "q", "clip", "threshold_ratio", "threshold_max", "f",
    "h1", "h2", "h3", "k", "n", "next_c_in", "stream", "flags",
)  # fmt: skip
WORD = {name: i for i, name in enumerate(COLUMNS)}
NUM_WORDS = len(COLUMNS)
ROW_BYTES = 4 * NUM_WORDS

CALLS_NETWORK = 1
FOLDED = 2
"""The row is ``a*x + b*F``, so x0 is computed only for who keeps it."""
KEEPS_X0 = 4
"""x0 is written to the history."""


def pack_table(table: StepTable) -> Float32:
    """The rows of a table for the kernels, float32 (N, K).

    A row's `next_c_in` is the `c_in` of the row after it, 1 in the last row. If any row reads the history, every row that
    calls a network writes its x0.
    """
    keeps_x0 = table.num_history > 0
    next_c_in = [row.c_in for row in table.rows[1:]] + [1.0]
    return np.stack([pack_row(row, c_in, keeps_x0=keeps_x0) for row, c_in in zip(table.rows, next_c_in, strict=True)])


def pack_start(table: StepTable) -> Float32:
    """The row of the initial noise, float32 (K,): x = init_scale * z, and the first row's network input beside it."""
    return pack_noise(INITIAL_STREAM, scale=table.init_scale, next_c_in=table.rows[0].c_in)


def pack_noise(stream: int, *, scale: float = 1.0, next_c_in: float = 1.0) -> Float32:
    """A row for `philox_normal`, float32 (K,): scale * z of one stream."""
    packed = np.zeros(NUM_WORDS, np.float32)
    packed[WORD["n"]] = scale
    packed[WORD["clip"]] = math.inf
    packed[WORD["next_c_in"]] = next_c_in
    packed.view(np.uint32)[WORD["stream"]] = stream
    return packed


def pack_row(row: Row, next_c_in: float = 1.0, *, keeps_x0: bool = False) -> Float32:
    """One row, float32 (K,)."""
    folded = row.is_affine and row.calls_network
    x_weight, second_weight = row.folded()[:2] if folded else (row.r, row.g if row.calls_network else 0.0)
    values = {
        "x_weight": x_weight,
        "second_weight": second_weight,
        "p": row.p,
        "q": row.q,
        "clip": math.inf if row.clip is None else row.clip,
        "threshold_ratio": row.threshold_ratio or 0.0,
        "threshold_max": row.threshold_max,
        "f": 0.0 if folded or not row.calls_network else row.f,
        **{name: getattr(row, name) for name in ("h1", "h2", "h3", "k", "n")},
        "next_c_in": next_c_in,
    }
    packed = np.zeros(NUM_WORDS, np.float32)
    for name, value in values.items():
        packed[WORD[name]] = value
    words = packed.view(np.uint32)
    words[WORD["stream"]] = row.stream
    words[WORD["flags"]] = (
        CALLS_NETWORK * row.calls_network | FOLDED * folded | KEEPS_X0 * (keeps_x0 and row.calls_network)
    )
    return packed


def is_fast(packed_row: Float32) -> bool:
    """Whether the kernel's fast path (``a*x + b*F + n*z``, nothing else) can run a packed row."""
    flags = int(packed_row.view(np.uint32)[WORD["flags"]])
    return flags == CALLS_NETWORK | FOLDED
