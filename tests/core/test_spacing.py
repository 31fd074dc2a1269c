"""Timesteps and sigma grids: published values and properties (equality with diffusers is in tests/parity)."""

from __future__ import annotations

import numpy as np
import pytest

from distill_rt.core.errors import UsageError
from distill_rt.core.spacing import (
    exponential_sigmas,
    karras_sigmas,
    shift_flow,
    shift_flow_dynamic,
    sigma_to_timestep,
    skipping_timesteps,
    spaced_timesteps,
    stretch_to_terminal,
)


def test_spacings_of_the_literature() -> None:
    """Lin et al. 2023, table 2, for 10 of 1000 steps, counted from 0."""
    assert spaced_timesteps("leading", 10, 1000).tolist() == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    assert spaced_timesteps("trailing", 10, 1000).tolist() == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert spaced_timesteps("linspace", 10, 1000).tolist() == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert spaced_timesteps("leading", 4, 1000, steps_offset=1).tolist() == [751, 501, 251, 1]


def test_published_student_grids() -> None:
    assert skipping_timesteps(4, 1000).tolist() == [999, 759, 499, 259]  # LCM
    assert spaced_timesteps("trailing", 4, 1000).tolist() == [999, 749, 499, 249]  # Lightning, SDXL-Turbo
    assert spaced_timesteps("trailing", 2, 1000).tolist() == [999, 499]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("num_train_timesteps", [40, 100, 1000])
def test_every_step_count_gives_that_many_falling_timesteps(spacing: str, num_train_timesteps: int) -> None:
    for num_steps in range(1, num_train_timesteps + 1):
        timesteps = spaced_timesteps(spacing, num_steps, num_train_timesteps)
        assert len(timesteps) == num_steps
        assert np.all(np.diff(timesteps) < 0)
        assert timesteps[0] < num_train_timesteps
        assert timesteps[-1] >= 0


def test_linspace_unrounded_keeps_fractions() -> None:
    timesteps = spaced_timesteps("linspace", 4, 1000, rounded=False)
    np.testing.assert_allclose(timesteps, [999, 666, 333, 0])
    assert spaced_timesteps("linspace", 3, 1000, rounded=False)[1] == 499.5


@pytest.mark.parametrize("num_steps", [1, 7, 50])
def test_skipping_is_a_subset_of_the_distillation_grid(num_steps: int) -> None:
    timesteps = skipping_timesteps(num_steps, 1000, original_inference_steps=50)
    assert len(timesteps) == num_steps
    assert set(timesteps.tolist()) <= set(range(19, 1000, 20))


def test_karras_and_exponential_ends_and_order() -> None:
    for sigmas in (karras_sigmas(0.002, 80.0, 18), exponential_sigmas(0.002, 80.0, 18)):
        assert sigmas[0] == pytest.approx(80.0)
        assert sigmas[-1] == pytest.approx(0.002)
        assert np.all(np.diff(sigmas) < 0)
    ratios = exponential_sigmas(0.002, 80.0, 18)[1:] / exponential_sigmas(0.002, 80.0, 18)[:-1]
    np.testing.assert_allclose(ratios, ratios[0])
    roots = karras_sigmas(0.002, 80.0, 18) ** (1 / 7)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots)[0])


def test_flow_shift() -> None:
    sigmas = np.array([1.0, 0.5, 0.25])
    np.testing.assert_allclose(shift_flow(sigmas, 3.0), [1.0, 0.75, 0.5])
    np.testing.assert_allclose(shift_flow(sigmas, 1.0), sigmas)
    np.testing.assert_allclose(shift_flow_dynamic(sigmas, np.log(3.0)), shift_flow(sigmas, 3.0))
    np.testing.assert_allclose(shift_flow_dynamic(sigmas, 3.0, "linear"), shift_flow(sigmas, 3.0))


def test_stretch_to_terminal() -> None:
    stretched = stretch_to_terminal(np.array([1.0, 0.6, 0.3]), 0.1)
    assert stretched[0] == 1.0
    assert stretched[-1] == pytest.approx(0.1)
    with pytest.raises(UsageError):
        stretch_to_terminal(np.array([1.0]), 0.1)


def test_sigma_to_timestep_inverts_the_table() -> None:
    table = np.exp(np.linspace(-4.0, 3.0, 50))
    np.testing.assert_allclose(sigma_to_timestep(table, table), np.arange(50), atol=1e-9)
    np.testing.assert_allclose(sigma_to_timestep(np.sqrt(table[3:4] * table[4:5]), table), [3.5])
    np.testing.assert_allclose(sigma_to_timestep(np.array([1e-9, 1e9]), table), [0.0, 49.0])


@pytest.mark.parametrize(
    ("spacing", "num_steps"), [("leading", 0), ("leading", 1001), ("trailing", -1), ("linspace", 2000)]
)
def test_step_counts_out_of_range(spacing: str, num_steps: int) -> None:
    with pytest.raises(UsageError) as caught:
        spaced_timesteps(spacing, num_steps, 1000)
    assert caught.value.code == "steps-out-of-range"


def test_refusals_name_the_way_out() -> None:
    with pytest.raises(UsageError, match="leading, trailing, linspace"):
        spaced_timesteps("sideways", 4, 1000)
    with pytest.raises(UsageError) as caught:
        spaced_timesteps("leading", 1000, 1000, steps_offset=1)
    assert caught.value.code == "timestep-out-of-range"
    with pytest.raises(UsageError):
        skipping_timesteps(51, 1000, original_inference_steps=50)
