"""Data sets: shapes, ranges, and batches that are decided by the draws alone."""

from __future__ import annotations

import pytest
import torch

from distill_rt.core.errors import UsageError
from distill_rt.training.data import DATASETS, Grid25, TensorDataset, digits, load_dataset
from distill_rt.training.draws import Draws
from distill_rt.training.quality.metrics import grid_modes


def test_digits_are_the_real_ones():
    data = digits()
    assert data.x0_NCHW.shape == (1797, 1, 8, 8)
    assert data.x0_NCHW.dtype == torch.float32
    assert data.sample_shape == (1, 8, 8)
    assert data.num_classes == 10
    assert float(data.x0_NCHW.min()) == -1.0
    assert float(data.x0_NCHW.max()) == 1.0
    assert len(data.x0_NCHW.unique()) == 17
    assert data.label_N is not None
    counts = torch.bincount(data.label_N, minlength=10)
    assert len(counts) == 10
    assert counts.min() > 170
    # A nine is brighter above its middle than a six: images and labels belong together.
    six, nine = (data.x0_NCHW[data.label_N == digit].mean(0)[0] for digit in (6, 9))
    assert nine[1:4].mean() > six[1:4].mean()
    assert nine[4:7].mean() < six[4:7].mean()


def test_a_batch_of_digits_holds_images_with_their_labels():
    data = digits()
    batch = data.batch(Draws(0, 0, 64))
    assert batch.label_B is not None
    assert data.label_N is not None
    for image, label in zip(batch.x0_BCHW, batch.label_B, strict=True):
        (where,) = torch.nonzero((data.x0_NCHW == image).flatten(1).all(1), as_tuple=True)
        assert label in data.label_N[where]


def test_every_image_is_drawn():
    data = TensorDataset(x0_NCHW=torch.arange(50.0).reshape(50, 1, 1, 1), label_N=None, num_classes=0)
    drawn = torch.cat([data.batch(Draws(0, step, 100)).x0_BCHW.flatten() for step in range(20)])
    assert len(drawn.unique()) == 50
    assert data.batch(Draws(0, 0, 3)).label_B is None


@pytest.mark.parametrize("labelled", [False, True])
def test_grid25_has_25_modes_and_unit_deviation(labelled):
    data = Grid25(labelled=labelled)
    batch = data.batch(Draws(0, 0, 40_000))
    points = batch.x0_BCHW.flatten(1)
    assert batch.x0_BCHW.shape == (40_000, *data.sample_shape)
    torch.testing.assert_close(points.std(dim=0), torch.ones(2), rtol=0, atol=0.02)
    torch.testing.assert_close(points.mean(dim=0), torch.zeros(2), rtol=0, atol=0.03)
    assert 2 * data.spacing**2 + data.mode_std**2 == pytest.approx(1.0, abs=2e-4)
    on_modes, modes = grid_modes(points, spacing=data.spacing, mode_std=data.mode_std)
    assert modes == 25
    assert on_modes == pytest.approx(1 - 2.718281828**-4.5, abs=2e-3)  # 3 standard deviations in the plane
    nearest = (points / data.spacing).round()
    residual = points - nearest * data.spacing
    torch.testing.assert_close(residual.std(dim=0), torch.full((2,), data.mode_std), rtol=0.02, atol=0)
    if labelled:
        assert data.num_classes == 5
        assert torch.equal(batch.label_B, nearest[:, 0].long() + 2)
    else:
        assert data.num_classes == 0
        assert batch.label_B is None


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_batch_is_decided_by_the_draws_alone(name):
    a, b = load_dataset(name), load_dataset(name)
    first = a.batch(Draws(3, 7, 16))
    a.batch(Draws(3, 8, 16))  # nothing is carried over
    for again in (a.batch(Draws(3, 7, 16)), b.batch(Draws(3, 7, 16))):
        assert torch.equal(again.x0_BCHW, first.x0_BCHW)
        assert (again.label_B is None) == (first.label_B is None) == (a.num_classes == 0)
        if first.label_B is not None:
            assert torch.equal(again.label_B, first.label_B)
            assert first.label_B.dtype == torch.int64
        assert again.captions_B == first.captions_B
        assert (first.captions_B is not None) == a.has_captions
    assert first.x0_BCHW.shape == (16, *a.sample_shape)
    for other in (Draws(3, 8, 16), Draws(4, 7, 16)):
        assert not torch.equal(a.batch(other).x0_BCHW, first.x0_BCHW)
    tail = a.batch(Draws(3, 7, 6, first_sample=10))
    assert torch.equal(tail.x0_BCHW, first.x0_BCHW[10:])


def test_an_unknown_data_set_lists_those_that_exist():
    with pytest.raises(UsageError, match="'mnist' is unknown") as caught:
        load_dataset("mnist")
    assert caught.value.hint == "one of: digits, grid25, grid25-labelled, shapes"
