import numpy as np
import pytest
import torch

from distill_rt.training.draws import Draws, Purpose


def test_a_draw_is_a_function_of_seed_step_sample_and_purpose():
    a, b = Draws(3, 17, 8), Draws(3, 17, 8)
    assert torch.equal(a.normal((2, 3)), b.normal((2, 3)))
    assert torch.equal(a.uniform(Purpose.TIME), b.uniform(Purpose.TIME))
    assert not torch.equal(a.normal((2, 3)), Draws(3, 18, 8).normal((2, 3)))
    assert not torch.equal(a.normal((2, 3)), Draws(4, 17, 8).normal((2, 3)))
    assert not torch.equal(a.uniform(Purpose.TIME), a.uniform(Purpose.GUIDANCE))


def test_a_sample_does_not_depend_on_its_batch():
    whole = Draws(1, 2, 6)
    half = Draws(1, 2, 3, first_sample=3)
    assert torch.equal(whole.normal((4,))[3:], half.normal((4,)))
    assert torch.equal(whole.integers(0, 100, Purpose.INDEX)[3:], half.integers(0, 100, Purpose.INDEX))


def test_uniform_numbers_are_uniform_and_open():
    u = torch.cat([Draws(0, step, 500).uniform(Purpose.TIME) for step in range(40)]).numpy()
    assert u.min() > 0
    assert u.max() < 1
    grid = np.arange(1, len(u) + 1) / len(u)
    assert np.abs(np.sort(u) - grid).max() < 1.63 / np.sqrt(len(u))  # Kolmogorov-Smirnov at 1 %


def test_the_largest_uniform_number_is_below_one(monkeypatch):
    monkeypatch.setattr(Draws, "_bits", lambda self, purpose: np.full(3, 2**32 - 1, np.uint32))
    assert Draws(0, 0, 3).uniform(Purpose.TIME).tolist() == [1.0 - 2.0**-24] * 3


@pytest.mark.parametrize(("low", "high"), [(0, 1), (1, 5), (0, 1797)])
def test_integers_cover_their_range_evenly(low, high):
    i = torch.cat([Draws(5, step, 1000).integers(low, high, Purpose.INDEX) for step in range(10)])
    assert i.min() == low
    assert i.max() == high - 1 or high - low > 1000
    counts = torch.bincount(i - low, minlength=high - low).float()
    expected = len(i) / (high - low)
    assert ((counts - expected).square() / expected).sum() < (high - low) + 5 * (2 * (high - low)) ** 0.5 + 1
