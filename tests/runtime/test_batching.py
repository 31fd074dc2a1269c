"""Requests onto compiled batches: every image exactly once, little padding, one answer for one question."""

import pytest

from distill_rt.runtime.batching import Chunk, split


@pytest.mark.parametrize("batches", [(1,), (4,), (1, 4, 16), (3, 7), (2, 16)])
@pytest.mark.parametrize("num_images", [1, 2, 3, 4, 5, 12, 15, 16, 17, 33, 100])
def test_every_image_is_covered_once_in_order(num_images: int, batches: tuple[int, ...]) -> None:
    chunks = split(num_images, batches)
    assert [k for chunk in chunks for k in range(chunk.start, chunk.start + chunk.count)] == list(range(num_images))
    assert all(chunk.batch in batches and 1 <= chunk.count <= chunk.batch for chunk in chunks)
    assert all(chunk.count == chunk.batch for chunk in chunks[:-1]), "only the last one is padded"


@pytest.mark.parametrize(
    ("num_images", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 1), (1, 1)]),  # half of a batch of 4 would be padding
        (3, [(3, 4)]),
        (5, [(4, 4), (1, 1)]),
        (12, [(12, 16)]),
        (16, [(16, 16)]),
        (21, [(16, 16), (4, 4), (1, 1)]),
    ],
)
def test_rule(num_images: int, expected: list[tuple[int, int]]) -> None:
    assert [(chunk.count, chunk.batch) for chunk in split(num_images, (16, 1, 4))] == expected


def test_fewer_images_than_the_smallest_batch_are_padded() -> None:
    assert split(1, (8,)) == [Chunk(start=0, count=1, batch=8)]
