"""The seam between the pipeline and what computes pixels: a `Work` goes in, a `Worker` writes uint8 pixels.

A worker serves one batch size of one engine. Which kind it is depends on the engine: its mode, and where its programs run.
The pipeline checks requests, tokenises prompts and splits them into batches; everything from tokens and seeds to
pixels is the worker's.

Legend: b images of this work, B images of the worker's batch (b <= B), L tokens, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from distill_rt.runtime.timing import Stopwatch

Pixels = NDArray[np.uint8]
OnRow = Callable[[int, Pixels], None]
"""``on_row(i, preview_bHWC)`` after row i of the table; the preview is a copy."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One chunk of a request that was checked against the contract.

    Args:
        steps: a plan of the contract.
        seeds: uint64 (b,), one per image.
        labels: one per image, or None for a student that takes none.
        tokens: int64 (b, L), or None for a student that takes no text.
        guidance: w, or None for a student that takes none.
        latents: the caller's own initial unit noise, float32 (b, *sample_shape), or None.
    """

    steps: int
    seeds: NDArray[np.uint64]
    labels: Sequence[int] | None = None
    tokens: NDArray[np.int64] | None = field(default=None, compare=False)
    guidance: float | None = None
    latents: NDArray[np.float32] | None = field(default=None, compare=False)


class Worker(Protocol):
    """One batch size of an engine, loaded. Not for two threads at once."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how it runs here, one line each; usually nothing."""
        ...

    def warm_up(self) -> None:
        """Call every program once, so that no request pays for first-call allocations. A worker that is loaded for a request
        that waits does without: it would wait for two calls."""
        ...

    def run(self, work: Work, out_BHWC: Pixels, watch: Stopwatch, on_row: OnRow | None = None) -> None:
        """Compute the images of a work.

        Args:
            out_BHWC: uint8 (b, H, W, C), overwritten.
            watch: told the stages (`Result.timings_ms`).
            on_row: called after every row of the table, for previews.
        """
        ...
