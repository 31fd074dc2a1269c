"""Guidance: native equals the one convention of the project, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from distill_rt import kernels
from distill_rt.core import guidance
from distill_rt.core.errors import UsageError

SHAPES = [(1, 1), (2, 3, 5, 7), (3, 4, 32, 33)]


def pair(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    both = np.random.default_rng(0).standard_normal((2, *shape)).astype(np.float32)
    return both[0], both[1]


@pytest.mark.parametrize("implementation", kernels.available_implementations())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_equals_the_convention(
    implementation: kernels.Implementation, shape: tuple[int, ...], num_threads: int
) -> None:
    F_u, F_c = pair(shape)
    for w in (1.0, 7.5, np.linspace(0.0, 9.0, shape[0])):
        combined = kernels.combine_guidance(F_u, F_c, w, num_threads=num_threads, implementation=implementation)
        expected = guidance.combine_guidance(F_u, F_c, w)
        np.testing.assert_array_equal(combined.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("implementation", kernels.available_implementations())
def test_in_place_over_the_unconditional_half(implementation: kernels.Implementation) -> None:
    F_u, F_c = pair((2, 4, 16, 16))
    expected = guidance.combine_guidance(F_u, F_c, 3.0)
    assert kernels.combine_guidance(F_u, F_c, 3.0, out=F_u, implementation=implementation) is F_u
    np.testing.assert_array_equal(F_u, expected)


def test_rescale_runs_in_the_reference() -> None:
    F_u, F_c = pair((2, 3, 8, 8))
    np.testing.assert_array_equal(
        kernels.combine_guidance(F_u, F_c, 5.0, rescale=0.7), guidance.combine_guidance(F_u, F_c, 5.0, rescale=0.7)
    )
    with pytest.raises(UsageError, match="rescaled guidance"):
        kernels.combine_guidance(F_u, F_c, 5.0, rescale=0.7, implementation="native")


def test_one_scale_per_image_or_one_for_all() -> None:
    F_u, F_c = pair((3, 4))
    with pytest.raises(UsageError, match="one per image"):
        kernels.combine_guidance(F_u, F_c, np.ones(2))
