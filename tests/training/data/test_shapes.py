"""Shapes: what a caption says is what the pixels show, and scene i is the same bytes for ever."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from distill_rt.training.data import Shapes
from distill_rt.training.data.shapes import COLOURS, KINDS, NUM_TRAINING_SCENES, QUARTERS, Scene, render
from distill_rt.training.draws import Draws


def test_the_bytes_of_a_scene_never_change():
    """A student's teacher names the data set, not its bytes: this hash is what makes the name mean something."""
    pixels, _ = render(np.arange(64))
    assert pixels.shape == (64, 3, 32, 32)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == (
        "4e8f2c1bc9a6ed1cfb389a42eeb4392728893765f367605604a592622d4aa595"
    )


def test_a_scene_is_decided_by_its_index_alone():
    indices = [5, 2**64 - 1, 0, NUM_TRAINING_SCENES]
    pixels, scenes = render(np.array(indices, np.uint64))
    for i, index in enumerate(indices):
        alone, (scene,) = render(np.array([index], np.uint64))
        np.testing.assert_array_equal(alone[0], pixels[i])
        assert scene == scenes[i]


def test_the_pixels_show_what_the_scene_says():
    pixels, scenes = render(np.arange(500))
    background = pixels[:, 0, 0, 0]
    assert (pixels[:, :, 0, 0] == background[:, None]).all(), "the corner is background, and grey"
    for image, scene, level in zip(pixels.astype(int), scenes, background, strict=True):
        foreground = np.abs(image - int(level)).sum(axis=0) > 60
        halves = foreground.reshape(2, 16, 2, 16).swapaxes(1, 2).reshape(4, 16, 16)
        areas = halves.sum(axis=(1, 2))
        assert tuple(np.flatnonzero(areas)) == scene.quarters
        assert areas[list(scene.quarters)].min() > 15
        quarter = scene.quarters[0]
        y, x = (int(v) for v in np.argwhere(halves[quarter]).mean(axis=0).round())
        centre = image[:, y + 16 * (quarter // 2), x + 16 * (quarter % 2)]
        assert tuple(centre) == list(COLOURS.values())[scene.colour], "the middle of every kind is painted"


def test_objects_cover_the_area_of_their_kind():
    """In units of r squared, r uniform from 4.5 to 6.5 pixels: pi; a side of 1.7 r; sides 0.55 r off; arms of a third."""
    pixels, scenes = render(np.arange(1500))
    areas: dict[int, list[float]] = {kind: [] for kind in range(len(KINDS))}
    for image, scene in zip(pixels.astype(float), scenes, strict=True):
        level, paint = image[:, 0, 0], np.array(list(COLOURS.values())[scene.colour])
        channel = np.abs(paint - level).argmax()
        coverage = (image[channel] - level[channel]) / (paint - level)[channel]
        areas[scene.kind].append(coverage.sum() / len(scene.quarters))
    mean_square = 5.5**2 + 2.0**2 / 12
    expected = {"circle": np.pi, "square": 1.7**2, "triangle": 3**1.5 * 0.55**2, "cross": 20 / 9}
    for kind, name in enumerate(KINDS):
        assert np.mean(areas[kind]) == pytest.approx(expected[name] * mean_square, rel=0.05), name


def test_every_combination_is_equally_likely():
    _, scenes = render(np.arange(6000))
    for values, num in (
        ([scene.label for scene in scenes], 24),
        ([len(scene.quarters) - 1 for scene in scenes], 4),
        ([scene.quarters[0] for scene in scenes if len(scene.quarters) == 1], 4),
    ):
        counts = np.bincount(values, minlength=num)
        assert len(counts) == num
        assert counts.min() > 0.7 * counts.mean()


@pytest.mark.parametrize(
    ("quarters", "said"),
    [
        ((2,), "a green cross in the bottom left"),
        ((0, 3), "two green crosses in the top left and the bottom right"),
        ((0, 1, 2), "three green crosses in the top left, the top right and the bottom left"),
        (
            (0, 1, 2, 3),
            "four green crosses in the top left, the top right, the bottom left and the bottom right",
        ),
    ],
)
def test_captions_are_english(quarters, said):
    assert Scene(kind=KINDS.index("cross"), colour=list(COLOURS).index("green"), quarters=quarters).caption == said
    assert Scene(kind=0, colour=0, quarters=(0,)).caption == "a red circle in the top left"


def test_captions_tell_all_scenes_apart():
    _, scenes = render(np.arange(8000))
    assert len({scene.caption for scene in scenes}) == len(set(scenes)) == 24 * 15
    assert all(any(quarter in scene.caption for quarter in QUARTERS) for scene in scenes)


def test_a_batch_carries_labels_and_captions_of_its_images():
    batch = Shapes().batch(Draws(0, 0, 32))
    assert batch.x0_BCHW.dtype == torch.float32
    assert -1.0 <= float(batch.x0_BCHW.min()) < float(batch.x0_BCHW.max()) <= 1.0
    assert batch.captions_B is not None
    assert batch.label_B is not None
    for caption, label in zip(batch.captions_B, batch.label_B.tolist(), strict=True):
        kind, colour = KINDS[label // len(COLOURS)], list(COLOURS)[label % len(COLOURS)]
        assert f" {colour} {kind}" in caption
    pixels = (batch.x0_BCHW + 1.0) * 127.5
    torch.testing.assert_close(pixels, pixels.round(), rtol=0, atol=1e-4)
