"""The memory of the text encoder: what it computes, how often, and what it forgets."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.runtime.text_cache import TextCache


class CountingEncoder:
    """Embedding of token t is (t, t + 1); like some processors' kernels, its bits depend on the neighbours in the batch."""

    def __init__(self, batch: int) -> None:
        self.inputs = {"tokens": np.zeros((batch, 3), np.int64)}
        self.outputs = {"text": np.zeros((batch, 3, 2), np.float32)}
        self.calls = 0

    def run(self) -> None:
        self.calls += 1
        tokens = self.inputs["tokens"].astype(np.float32)
        self.outputs["text"][:] = np.stack([tokens, tokens + 1], axis=2) + tokens.std(axis=0).sum()


def tokens(*values: int) -> NDArray[Any]:
    return np.array(values, np.int64)


def test_a_prompt_is_encoded_once_and_alone() -> None:
    program = CountingEncoder(4)
    cache = TextCache(program)
    first = cache.encode(tokens(1, 2, 3))
    np.testing.assert_array_equal(first, np.array([[1, 2], [2, 3], [3, 4]], np.float32), strict=True)
    cache.encode(tokens(9, 9, 9))
    np.testing.assert_array_equal(cache.encode([1, 2, 3]), first)
    assert program.calls == 2


def test_the_one_used_longest_ago_goes_first() -> None:
    program = CountingEncoder(1)
    cache = TextCache(program, capacity_bytes=2 * 3 * 2 * 4)
    for values in ((1, 1, 1), (2, 2, 2), (1, 1, 1), (3, 3, 3), (1, 1, 1)):
        cache.encode(tokens(*values))
    assert (program.calls, len(cache)) == (3, 2)
    cache.encode(tokens(2, 2, 2))
    assert program.calls == 4


def test_one_embedding_is_always_kept() -> None:
    cache = TextCache(CountingEncoder(1), capacity_bytes=1)
    cache.encode(tokens(1, 2, 3))
    assert len(cache) == 1
