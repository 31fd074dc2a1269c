"""A reader of scenes: whether images of shapes show what was asked, and features to compare them in.

One classifier of quarters says what stands in each: one of 24 objects (kind and colour), or nothing. A caption is followed
where all four quarters show what it says: kind, colour, number and places.

Legend: N images, Q quarters (as `distill_rt.training.data.shapes` has them), C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_rt.training.data import Shapes, TensorDataset
from distill_rt.training.data.shapes import QUARTERS, SIZE_PX, Scene, render
from distill_rt.training.quality.classifier import Classifier, train_classifier

NOTHING = Shapes.num_classes
"""What an empty quarter is labelled with."""
NUM_SCENES = 4096
ITERATIONS = 1600
"""Twice what digits get: with 800, whether one of the 24 objects is told from its neighbour is left to rounding."""


@dataclass(frozen=True, kw_only=True)
class SceneReader:
    """Reads scenes (N, 3, 32, 32) in [-1, 1].

    Args:
        quarters: of images (N, 3, 16, 16), into the 24 objects and `NOTHING`.
    """

    quarters: Classifier

    @property
    def held_out_accuracy(self) -> float:
        """Of quarters of scenes that it never saw."""
        return self.quarters.held_out_accuracy

    def embed(self, images: Tensor) -> Tensor:
        """Features of all quarters, (4 N, 64)."""
        return self.quarters.embed(_cut(images))

    def accuracy(self, images: Tensor, asked: Tensor) -> float:
        """Share of the images that show what was asked.

        Args:
            asked: of every quarter, (N, 4) as from `quarter_labels`; or one object for the whole image, (N,), of which there
                must be one or more, and nothing else.
        """
        found_NQ = self.quarters.classify(_cut(images)).reshape(-1, len(QUARTERS))
        if asked.dim() == 2:
            return float((found_NQ == asked).all(dim=1).float().mean())
        is_asked_NQ, is_empty_NQ = found_NQ == asked[:, None], found_NQ == NOTHING
        return float(((is_asked_NQ | is_empty_NQ).all(dim=1) & is_asked_NQ.any(dim=1)).float().mean())


def train_scene_reader() -> SceneReader:
    """On 4,096 scenes of the training range."""
    pixels, scenes = render(range(NUM_SCENES))
    images = torch.from_numpy(pixels).float() / 127.5 - 1.0
    data = TensorDataset(
        x0_NCHW=_cut(images), label_N=quarter_labels(scenes).flatten(), num_classes=Shapes.num_classes + 1
    )
    return SceneReader(quarters=train_classifier(data, iterations=ITERATIONS))


def quarter_labels(scenes: Sequence[Scene]) -> Tensor:
    """What stands in every quarter, int64 (N, 4)."""
    return torch.tensor(
        [[scene.label if q in scene.quarters else NOTHING for q in range(len(QUARTERS))] for scene in scenes]
    )


def _cut(images: Tensor) -> Tensor:
    """Every image as its quarters, (4 N, C, 16, 16)."""
    half = SIZE_PX // 2
    grid = images.reshape(len(images), -1, 2, half, 2, half).permute(0, 2, 4, 1, 3, 5)
    return grid.reshape(-1, images.shape[1], half, half)
