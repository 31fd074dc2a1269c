"""Pixels: one definition, two implementations, equal bytes."""

from __future__ import annotations

import numpy as np
import pytest

from distill_rt import kernels
from distill_rt.core.errors import UsageError

implementations = pytest.mark.parametrize("implementation", kernels.available_implementations())


def row_of(values: list[float]) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, 1, 1, -1)


@implementations
def test_known_values(implementation: kernels.Implementation) -> None:
    x = row_of([-1.0, 1.0, 0.0, -2.0, 2.0, np.nan, np.inf, -np.inf, 1e30, -1e-30])
    pixels = kernels.to_uint8(x, implementation=implementation)
    assert pixels.reshape(-1).tolist() == [0, 255, 128, 0, 255, 0, 255, 0, 255, 128]  # 127.5 rounds to even


@implementations
def test_every_byte_round_trips_and_halves_go_to_even(implementation: kernels.Implementation) -> None:
    levels = np.arange(256, dtype=np.float32)
    x = levels / np.float32(127.5) - np.float32(1)
    assert kernels.to_uint8(row_of(x.tolist()), implementation=implementation).reshape(-1).tolist() == list(range(256))
    # Inputs whose (x + 1) * 127.5 is exactly k + 1/2: x + 1 = (2k + 1)/255 rounded once may miss, so keep those that hit.
    halves = np.arange(255, dtype=np.float32) + np.float32(0.5)
    x = halves / np.float32(127.5) - np.float32(1)
    exact = (x + np.float32(1)) * np.float32(127.5) == halves
    assert exact.sum() > 50
    got = kernels.to_uint8(row_of(x[exact].tolist()), implementation=implementation).reshape(-1)
    np.testing.assert_array_equal(got, 2 * np.round(halves[exact] / 2))


@pytest.mark.skipif("native" not in kernels.available_implementations(), reason="built without native kernels")
@pytest.mark.parametrize("num_channels", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 32), (31, 33)])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_native_equals_reference(num_channels: int, size: tuple[int, int], num_threads: int) -> None:
    x = (1.5 * np.random.default_rng(0).standard_normal((3, num_channels, *size))).astype(np.float32)
    native = kernels.to_uint8(x, num_threads=num_threads, implementation="native")
    assert native.shape == (3, *size, num_channels)
    np.testing.assert_array_equal(native, kernels.to_uint8(x, implementation="reference"))


@implementations
def test_layout(implementation: kernels.Implementation) -> None:
    """Channels become the last axis; a strided input is copied, a given output is used."""
    levels = np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(2, 3, 4, 5)
    x = np.asfortranarray(levels / np.float32(127.5) - np.float32(1))
    out = np.empty((2, 4, 5, 3), np.uint8)
    assert kernels.to_uint8(x, out=out, implementation=implementation) is out
    np.testing.assert_array_equal(out, levels.transpose(0, 2, 3, 1))
    assert kernels.to_uint8(x[:0], implementation=implementation).shape == (0, 4, 5, 3)


def test_misuse() -> None:
    with pytest.raises(UsageError, match="got float64"):
        kernels.to_uint8(np.zeros((1, 3, 4, 4)))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="four dimensions"):
        kernels.to_uint8(np.zeros((3, 4, 4), np.float32))
    with pytest.raises(UsageError, match="uint8"):
        kernels.to_uint8(np.zeros((1, 3, 4, 4), np.float32), out=np.zeros((1, 4, 4, 3), np.float32))
