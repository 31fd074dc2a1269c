"""Shapes: 32x32 RGB scenes of a kind, a colour, a number and places, with captions and class ids, made by index.

A scene is one to four equal objects, one in each of as many quarters of the image. Kind, colour, quarters, size, place within
the quarter and brightness of the background are drawn from the scene's index by the project's own Philox words, so scene i is
the same bytes everywhere and for ever. What a caption says can be read back from the pixels, which is what a measure of how
well a student follows its prompt needs.

Legend: B scenes, Q quarters (top left, top right, bottom left, bottom right), C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from distill_rt.core.noise import EXTRA_STREAM_BASE, uniform_bits
from distill_rt.training.data.base import Batch
from distill_rt.training.draws import Draws, Purpose

SIZE_PX = 32
KINDS = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (225, 45, 45),
    "green": (50, 190, 70),
    "blue": (60, 90, 235),
    "yellow": (240, 215, 50),
    "purple": (170, 60, 200),
    "white": (240, 240, 240),
}
NUMBERS = ("a", "two", "three", "four")
QUARTERS = ("the top left", "the top right", "the bottom left", "the bottom right")

WORDS = (
    *NUMBERS,
    *COLOURS,
    *(form for kind in KINDS for form in (kind, f"{kind}{'es' if kind == 'cross' else 's'}")),
    *("in", "the", "top", "bottom", "left", "right", "and", ","),
)
"""Everything that captions are made of."""

NUM_TRAINING_SCENES = 1 << 30
"""Training draws from the scenes below; those from here on are never seen by it."""

_STREAM = EXTRA_STREAM_BASE + 64  # beyond every `Purpose`
_RADIUS_PX = (4.5, 6.5)
_JITTER_PX = 1.25  # a cross of 6.5 px still keeps off the middle lines
_BACKGROUND = (10, 60)
_NUM_WORDS = 18


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """What a scene shows.

    Args:
        kind, colour: indices into `KINDS` and the keys of `COLOURS`.
        quarters: indices into `QUARTERS`, ascending, one for each object.
    """

    kind: int
    colour: int
    quarters: tuple[int, ...]

    @property
    def label(self) -> int:
        """Class id: ``kind * 6 + colour``, 0 to 23."""
        return self.kind * len(COLOURS) + self.colour

    @property
    def caption(self) -> str:
        """For example "two red circles in the top left and the bottom right"."""
        number = len(self.quarters)
        kind = KINDS[self.kind]
        plural = "" if number == 1 else "es" if kind == "cross" else "s"
        *first, last = (QUARTERS[q] for q in self.quarters)
        where = f"{', '.join(first)} and {last}" if first else last
        return f"{NUMBERS[number - 1]} {tuple(COLOURS)[self.colour]} {kind}{plural} in {where}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Shapes:
    """The scenes as a data set: 24 classes (kind x colour) and captions."""

    sample_shape = (3, SIZE_PX, SIZE_PX)
    num_classes = len(KINDS) * len(COLOURS)
    has_captions = True

    def batch(self, draws: Draws) -> Batch:
        pixels, scenes = render(draws.integers(0, NUM_TRAINING_SCENES, Purpose.INDEX).numpy())
        return Batch(
            x0_BCHW=torch.from_numpy(pixels).float() / 127.5 - 1.0,
            label_B=torch.tensor([scene.label for scene in scenes], dtype=torch.int64),
            captions_B=tuple(scene.caption for scene in scenes),
        )


def unseen_scenes(num: int) -> list[Scene]:
    """What the first `num` scenes show that training never draws; nothing is painted."""
    words = uniform_bits(range(NUM_TRAINING_SCENES, NUM_TRAINING_SCENES + num), _NUM_WORDS, _STREAM)
    return _scenes(*_contents(words))


def render(indices: Sequence[int] | NDArray[np.int64]) -> tuple[NDArray[np.uint8], list[Scene]]:
    """Scenes by index, 0 to 2**64 - 1: pixels (B, 3, 32, 32) and what they show."""
    words = uniform_bits(indices, _NUM_WORDS, _STREAM)
    kind_B, colour_B, filled_BQ = _contents(words)
    unit = (words[:, 7:].astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    radius_B = _within(unit[:, 0], *_RADIUS_PX)
    background_B = _within(unit[:, 1], *_BACKGROUND)
    jitter_BQ2 = _within(unit[:, 2:10], -_JITTER_PX, _JITTER_PX).reshape(-1, 4, 2)
    quarter_Q2 = np.array([[x, y] for y in (8, 24) for x in (8, 24)], np.float32)
    coverage_BHW = _coverage(kind_B, quarter_Q2 + jitter_BQ2, radius_B, filled_BQ)[:, None]
    paint_BC11 = np.array(list(COLOURS.values()), np.float32)[colour_B][:, :, None, None]
    levels = background_B[:, None, None, None] * (1 - coverage_BHW) + paint_BC11 * coverage_BHW
    return (levels + np.float32(0.5)).astype(np.uint8), _scenes(kind_B, colour_B, filled_BQ)


def _contents(words: NDArray[np.uint32]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Kind (B,), colour (B,) and filled quarters (B, Q) of scenes, from their words."""
    kind_B, colour_B, count_B = (_below(words[:, i], n) for i, n in enumerate((len(KINDS), len(COLOURS), 4)))
    # The quarters with the smallest words are filled: a stable sort decides ties.
    rank_BQ = words[:, 3:7].argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return kind_B, colour_B, rank_BQ <= count_B[:, None]


def _scenes(kind_B: NDArray[np.int64], colour_B: NDArray[np.int64], filled_BQ: NDArray[np.bool_]) -> list[Scene]:
    return [
        Scene(kind=int(kind), colour=int(colour), quarters=tuple(int(q) for q in np.flatnonzero(filled)))
        for kind, colour, filled in zip(kind_B, colour_B, filled_BQ, strict=True)
    ]


def _below(word_B: NDArray[np.uint32], limit: int) -> NDArray[np.int64]:
    """Integers 0 <= i < limit from random words."""
    return ((word_B.astype(np.uint64) * np.uint64(limit)) >> np.uint64(32)).astype(np.int64)


def _within(unit: NDArray[np.float32], low: float, high: float) -> NDArray[np.float32]:
    return np.float32(low) + np.float32(high - low) * unit


def _coverage(
    kind_B: NDArray[np.int64],
    centre_BQ2: NDArray[np.float32],
    radius_B: NDArray[np.float32],
    filled_BQ: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """How much of each pixel (B, H, W) an object covers, 0 to 1, from its signed distance in pixels.

    Only operations with one correctly rounded answer, so that the bytes are the same on every machine.
    """
    along = np.arange(SIZE_PX, dtype=np.float32) + np.float32(0.5)
    dx = (along - centre_BQ2[:, :, 0, None])[:, :, None, :]
    dy = (along - centre_BQ2[:, :, 1, None])[:, :, :, None]
    r = radius_B[:, None, None, None]
    ax, ay, third = np.abs(dx), np.abs(dy), r * np.float32(1 / 3)
    distance = np.empty((*filled_BQ.shape, SIZE_PX, SIZE_PX), np.float32)
    for kind, name in enumerate(KINDS):
        of = kind_B == kind
        x, y, yy, rr, tt = ax[of], ay[of], dy[of], r[of], third[of]
        if name == "circle":
            distance[of] = np.sqrt(x * x + y * y) - rr
        elif name == "square":
            distance[of] = np.maximum(x, y) - rr * np.float32(0.85)
        elif name == "triangle":  # equilateral, apex up, its base and sides 0.55 r from the centre
            side = x * np.float32(0.8660254) - yy * np.float32(0.5)
            distance[of] = np.maximum(side, yy) - rr * np.float32(0.55)
        else:
            distance[of] = np.minimum(np.maximum(x - rr, y - tt), np.maximum(x - tt, y - rr))
    inside = np.clip(np.float32(0.5) - distance, 0, 1) * filled_BQ[:, :, None, None]
    covered: NDArray[np.float32] = inside.max(axis=1)
    return covered
