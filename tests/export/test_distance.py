"""The three figures against numbers worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from distill_rt.core.artifacts import Distance
from distill_rt.export.distance import PSNR_CAP_DB, distance, typical_norm, within, worst


def test_by_hand() -> None:
    want = np.array([[3.0, 4.0]], np.float32)
    got = np.array([[3.0, 3.5]], np.float32)
    figure = distance(got, want, 5.0)
    assert figure.relative_l2 == pytest.approx(0.5 / 5)
    assert figure.psnr_db == pytest.approx(10 * math.log10(4 / (0.25 / 2)))
    assert figure.cosine == pytest.approx((9 + 14) / (5 * math.sqrt(9 + 3.5**2)))


def test_the_worst_row_counts() -> None:
    want = np.ones((3, 2, 4), np.float32)
    got = want.copy()
    got[1] *= 1.5
    norm = typical_norm(want)
    assert norm == pytest.approx(math.sqrt(8))
    assert distance(got, want, norm).relative_l2 == pytest.approx(0.5)
    assert distance(got[:1], want[:1], norm).relative_l2 == 0


def test_a_row_of_nearly_nothing_is_measured_by_the_others() -> None:
    want = np.array([[1.0, 0.0], [0.0, 1.0], [1e-6, 0.0]])
    got = want.copy()
    got[2] = [0.0, 0.0]
    assert distance(got, want, typical_norm(want)).relative_l2 == pytest.approx(1e-6 / math.sqrt(2 / 3))


def test_equal_arrays() -> None:
    x = np.random.default_rng(0).standard_normal((2, 5)).astype(np.float32)
    figure = distance(x, x, typical_norm(x))
    assert figure.relative_l2 == 0
    assert figure.psnr_db == PSNR_CAP_DB
    assert figure.cosine == pytest.approx(1)


def test_zeros() -> None:
    """A network whose last layer is still zero: equal is perfect, anything else is not."""
    zero, one = np.zeros((1, 4)), np.full((1, 4), 0.5)
    assert typical_norm(zero) == 1
    assert distance(zero, zero, 1.0) == Distance(relative_l2=0.0, psnr_db=PSNR_CAP_DB, cosine=1.0)
    assert distance(one, zero, 1.0).relative_l2 == pytest.approx(1.0)
    assert distance(one, zero, 1.0).cosine == 0
    assert distance(zero, one, 1.0).relative_l2 == pytest.approx(1.0)


def test_worst_and_within() -> None:
    a = Distance(relative_l2=0.1, psnr_db=40.0, cosine=0.99)
    b = Distance(relative_l2=0.2, psnr_db=50.0, cosine=0.98)
    assert worst([a, b]) == Distance(relative_l2=0.2, psnr_db=40.0, cosine=0.98)
    assert within(a, a)
    for bar in (
        Distance(relative_l2=0.09, psnr_db=0.0, cosine=0.0),
        Distance(relative_l2=1.0, psnr_db=40.1, cosine=0.0),
        Distance(relative_l2=1.0, psnr_db=0.0, cosine=0.995),
    ):
        assert not within(a, bar)
