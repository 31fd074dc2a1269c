"""Prompts' embeddings from the text encoder, and those of the last prompts kept: the same prompt costs one copy.

An embedding is always computed alone, by the encoder of the smallest compiled batch. So it does not depend on which prompts
came with it or before it, and a cached one has the bits that a new one would have.

Legend: L tokens, D elements of one token's embedding.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.base import Program

Float32 = NDArray[np.float32]

CACHE_BYTES = 64 << 20
"""Room for the embeddings of about 280 prompts of 77 x 768."""


class TextCache:
    """Text encoder with a memory of what it encoded last. Not for two threads at once.

    Args:
        program: the text encoder.
        capacity_bytes: of the embeddings kept; the one that was used longest ago goes first.
    """

    def __init__(self, program: Program, *, capacity_bytes: int = CACHE_BYTES) -> None:
        self._program = program
        (self._tokens,) = program.inputs.values()
        (self._text,) = program.outputs.values()
        self._capacity = max(1, capacity_bytes // self._text[0].nbytes)
        self._kept: OrderedDict[bytes, Float32] = OrderedDict()

    def __len__(self) -> int:
        """Number of embeddings kept."""
        return len(self._kept)

    def encode(self, tokens: NDArray[np.int64] | Sequence[int]) -> Float32:
        """The embedding (L, D) of one prompt of L tokens; do not write into it."""
        ids: NDArray[Any] = np.asarray(tokens, np.int64)
        key = ids.tobytes()
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        self._tokens[:] = ids  # every row of the batch, if there is none of one
        self._program.run()
        embedding: Float32 = self._text[0].copy()
        self._kept[key] = embedding
        if len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return embedding
