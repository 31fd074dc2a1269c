"""Which compiled batches serve a request: a fixed rule, because on some backends the batch decides an image's last bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

PAD_FROM = 0.75
"""The rest of a request goes as one padded batch if it fills at least this much of it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Images [start, start + count) of a request run as one batch of `batch` images; the difference is padding."""

    start: int
    count: int
    batch: int


def split(num_images: int, batches: Sequence[int]) -> list[Chunk]:
    """Cover `num_images` with compiled batches.

    The largest batch as often as it fits; then the smallest one that holds the rest, if the rest fills at least
    `PAD_FROM` of it, else the largest one that the rest fills, and so on; a rest smaller than every batch is padded.

    Args:
        batches: sizes that are compiled, in any order, at least one.
    """
    chunks = []
    start = 0
    while start < num_images:
        rest = num_images - start
        batch = _choose(rest, sorted(batches))
        chunks.append(Chunk(start=start, count=min(rest, batch), batch=batch))
        start += batch
    return chunks


def _choose(rest: int, ascending: Sequence[int]) -> int:
    holding = next((batch for batch in ascending if batch >= rest), None)
    filled = [batch for batch in ascending if batch <= rest]
    if holding is not None and (not filled or rest >= PAD_FROM * holding):
        return holding
    return filled[-1]
