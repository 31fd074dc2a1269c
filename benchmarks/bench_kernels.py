"""Native kernels against the NumPy reference: one group per operation and size, equal answers asserted.

    pytest benchmarks/bench_kernels.py --benchmark-json kernels.json

`native-auto` chooses its threads itself; set OMP_NUM_THREADS to bound it.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import numpy as np
import pytest

from distill_rt import kernels
from distill_rt.core.table import Row

SHAPES = {"1x1x8x8": (1, 1, 8, 8), "4x4x64x64": (4, 4, 64, 64), "16x3x256x256": (16, 3, 256, 256)}

# name -> (implementation, num_threads)
VARIANTS: dict[str, tuple[kernels.Implementation, int | None]] = {
    "reference": ("reference", 1),
    "native-1-thread": ("native", 1),
    "native-auto": ("native", None),
}

AFFINE = Row(p=1.3, q=-0.7, r=0.2, g=0.9, n=0.35, stream=1)
MULTISTEP = Row(p=1.1, q=-0.4, clip=1.0, r=0.3, g=1.4, h1=-0.45)

Call = Callable[[kernels.Implementation, int | None], np.ndarray]


def unit_noise(shape: tuple[int, ...]) -> Call:
    seeds = np.arange(shape[0], dtype=np.uint64)
    out = np.empty(shape, np.float32)
    return lambda implementation, num_threads: kernels.unit_noise(
        seeds, shape[1:], out=out, implementation=implementation, num_threads=num_threads
    )


def affine_row(shape: tuple[int, ...]) -> Call:
    x, F, z, out = draws(shape)
    return lambda implementation, num_threads: kernels.apply_row(
        AFFINE, x, F, z, out=out, implementation=implementation, num_threads=num_threads
    )


def multistep_row(shape: tuple[int, ...]) -> Call:
    x, F, past, out = draws(shape)
    x0_out = np.empty_like(x)
    return lambda implementation, num_threads: kernels.apply_row(
        MULTISTEP, x, F, history=[past], out=out, x0_out=x0_out, implementation=implementation, num_threads=num_threads
    )


def guidance(shape: tuple[int, ...]) -> Call:
    F_u, F_c, _, out = draws(shape)
    w = np.full(shape[0], 7.5, np.float32)
    return lambda implementation, num_threads: kernels.combine_guidance(
        F_u, F_c, w, out=out, implementation=implementation, num_threads=num_threads
    )


def to_uint8(shape: tuple[int, ...]) -> Call:
    x = draws(shape)[0]
    out = np.empty((shape[0], *shape[2:], shape[1]), np.uint8)
    return lambda implementation, num_threads: kernels.to_uint8(
        x, out=out, implementation=implementation, num_threads=num_threads
    )


def draws(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.random.default_rng(0).standard_normal((4, *shape)).astype(np.float32))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("operation", [unit_noise, affine_row, multistep_row, guidance, to_uint8])
def test_kernel(benchmark: Any, operation: Callable[[tuple[int, ...]], Call], shape: str, variant: str) -> None:
    implementation, num_threads = VARIANTS[variant]
    if implementation not in kernels.available_implementations():
        pytest.skip("built without native kernels")
    call = operation(SHAPES[shape])
    expected = call("reference", 1).copy()
    benchmark.group = f"{operation.__name__} {shape}"
    benchmark.extra_info.update(
        operation=operation.__name__, shape=shape, dtype="float32", implementation=implementation,
        num_threads=num_threads or "auto", versions={name: version(name) for name in ("distill-rt", "numpy")},
    )  # fmt: skip
    result = benchmark(call, implementation, num_threads)
    np.testing.assert_array_equal(result, expected)
