"""The noise kernel equals the specification bit for bit, whatever the threads, the sizes and the batch."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from distill_rt import kernels
from distill_rt.core import noise
from distill_rt.core.errors import UsageError

pytestmark = pytest.mark.skipif(
    "native" not in kernels.available_implementations(), reason="built without native kernels"
)

SEEDS = [0, 1, 2**32, 2**64 - 1, 12345678901234567890]


def bits(array: np.ndarray) -> np.ndarray:
    return array.view(np.uint32)


# Around the block of 4 words and the chunk of 256 elements.
@pytest.mark.parametrize("num", [1, 3, 4, 5, 255, 256, 257, 1023, 4096])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_equals_the_specification(num: int, num_threads: int) -> None:
    for num_images in (1, 2, 5):
        seeds = SEEDS[:num_images]
        native = kernels.unit_noise(seeds, (num,), 7, num_threads=num_threads, implementation="native")
        np.testing.assert_array_equal(bits(native), bits(noise.unit_noise(seeds, (num,), 7)))


def test_equals_the_specification_in_the_tail() -> None:
    """A million draws reach |z| > 4.5, so both branches of the transform are compared."""
    native = kernels.unit_noise([3], (1_000_000,), num_threads=2, implementation="native")
    assert np.abs(native).max() > 4.5
    np.testing.assert_array_equal(bits(native), bits(noise.unit_noise([3], (1_000_000,))))


@pytest.mark.parametrize("implementation", kernels.available_implementations())
def test_golden_hash(implementation: kernels.Implementation) -> None:
    """The same value as in tests/core/test_noise.py ("latent")."""
    z = kernels.unit_noise([0, 1], (4, 64, 64), implementation=implementation)
    assert (
        hashlib.sha256(z.astype("<f4").tobytes()).hexdigest()
        == "9e521173e3224bfd88fd4c1577b17fa957b076e9f6a13dc30af30d4d43f5099c"
    )


@pytest.mark.parametrize("implementation", kernels.available_implementations())
def test_shapes_and_out(implementation: kernels.Implementation) -> None:
    out = np.full((2, 3, 5, 7), np.nan, np.float32)
    assert kernels.unit_noise([4, 5], (3, 5, 7), 1, out=out, implementation=implementation) is out
    np.testing.assert_array_equal(out, noise.unit_noise([4, 5], (3, 5, 7), 1))
    assert kernels.unit_noise([], (3, 5, 7), implementation=implementation).shape == (0, 3, 5, 7)
    assert kernels.unit_noise([1], (0,), implementation=implementation).shape == (1, 0)


def test_seeds_may_be_a_strided_array() -> None:
    seeds = np.arange(10, dtype=np.uint64)[::3]
    np.testing.assert_array_equal(kernels.unit_noise(seeds, (9,)), noise.unit_noise(seeds.tolist(), (9,)))


@pytest.mark.parametrize(
    ("out", "code"),
    [
        (np.empty((1, 8), np.float64), "kernel-dtype"),
        (np.empty((1, 9), np.float32), "kernel-shape"),
        (np.empty((1, 16), np.float32)[:, ::2], "kernel-layout"),
        ([0.0] * 8, "kernel-dtype"),
    ],
)
def test_refuses_an_unfit_out(out: object, code: str) -> None:
    with pytest.raises(UsageError) as caught:
        kernels.unit_noise([1], (8,), out=out)  # type: ignore[arg-type]
    assert caught.value.code == code


def test_refuses_bad_seeds_and_streams() -> None:
    with pytest.raises(UsageError):
        kernels.unit_noise([-1], (8,))
    with pytest.raises(UsageError):
        kernels.unit_noise([1], (8,), 2**32)
    with pytest.raises(UsageError, match="num_threads"):
        kernels.unit_noise([1], (8,), num_threads=0)
    with pytest.raises(UsageError, match="implementation"):
        kernels.unit_noise([1], (8,), implementation="cuda")  # type: ignore[arg-type]
