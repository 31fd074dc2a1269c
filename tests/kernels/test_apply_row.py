"""One row, native and reference, has the bits of the table interpreter in float32."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from distill_rt import kernels
from distill_rt.core.errors import UsageError
from distill_rt.core.table import Row, StepTable, run_table

# (B, ...): odd sizes around the block of 1024 elements.
SHAPES = [(1, 1), (1, 3, 5, 7), (2, 4, 16, 16), (3, 1023), (1, 1025), (2, 3, 33, 31)]

ROWS = {
    "affine": Row(p=1.3, q=-0.7, r=0.2, g=0.9),
    "affine with noise": Row(p=1.3, q=-0.7, r=0.2, g=0.9, n=0.35, stream=1),
    "clip": Row(p=1.3, q=-0.7, clip=1.0, r=0.2, g=0.9, n=0.35, stream=1),
    "one history": Row(p=1.1, q=-0.4, r=0.3, g=1.4, h1=-0.45),
    "three histories": Row(p=1.1, q=-0.4, r=0.3, g=1.4, h1=-0.45, h2=0.3, h3=-0.11),
    "third history alone": Row(p=1.1, q=-0.4, r=0.3, g=1.4, h3=-0.11),
    "anchor": Row(p=1.1, q=-0.4, r=0.3, g=1.4, k=0.77),
    "clip, raw output beside it": Row(p=1.1, q=-0.4, clip=0.5, r=0.3, g=1.4, f=-0.3),
    "everything": Row(p=1.1, q=-0.4, clip=0.5, r=0.3, g=1.4, f=0.7, h1=-0.45, h2=0.3, h3=0.2, k=0.6, n=0.1, stream=4),
    "no network": Row(net_id=-1, r=0.8, n=0.6, stream=2),
    "no network, no noise": Row(net_id=-1, r=0.8),
    "no network, anchor": Row(net_id=-1, r=0.8, g=0.0, k=0.2),
}

requires_native = pytest.mark.skipif(
    "native" not in kernels.available_implementations(), reason="built without native kernels"
)


def arguments(row: Row, shape: tuple[int, ...], seed: int = 0) -> dict[str, Any]:
    """Random x, F, z, history and anchor, each given only if the row needs it."""
    rng = np.random.default_rng(seed)

    def draw() -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return {
        "x": draw(),
        "F": draw() if row.calls_network else None,
        "z": draw() if row.n else None,
        "history": [draw(), draw(), draw()],
        "anchor": draw() if row.k else None,
    }


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


@requires_native
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_native_equals_reference(row: Row, shape: tuple[int, ...], num_threads: int) -> None:
    given = arguments(row, shape)
    results = {}
    for implementation in ("native", "reference"):
        x0_out = np.empty(shape, np.float32) if row.calls_network else None
        scaled_out = np.empty(shape, np.float32)
        out = kernels.apply_row(
            row, **given, x0_out=x0_out, next_c_in=0.37, scaled_out=scaled_out,
            num_threads=num_threads, implementation=implementation,
        )  # fmt: skip
        results[implementation] = (out, x0_out, scaled_out)
    for native, expected in zip(*results.values(), strict=True):
        if expected is not None:
            assert_same_bits(native, expected)
    assert_same_bits(results["native"][2], np.float32(0.37) * results["native"][0])


TABLES = {
    "affine": StepTable(init_scale=1.0, rows=(ROWS["affine with noise"], ROWS["affine"])),
    "multistep": StepTable(
        init_scale=14.6,
        rows=(
            ROWS["affine"],
            ROWS["one history"],
            ROWS["three histories"],
            ROWS["no network"],
            ROWS["three histories"],
        ),
    ),
    "two evaluations": StepTable(
        rows=(Row(p=0.9, q=0.2, r=0.1, g=0.9, set_anchor=True), ROWS["anchor"], ROWS["everything"], ROWS["clip"])
    ),
    "threshold": StepTable(rows=(Row(p=2.0, q=0.5, threshold_ratio=0.9, threshold_max=1.5), ROWS["affine"])),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
@pytest.mark.parametrize("implementation", [None, "reference"])
@pytest.mark.parametrize("in_place", [False, True])
def test_rows_make_the_table(table: StepTable, implementation: Any, in_place: bool) -> None:
    """A runtime's loop over `apply_row`, with buffers and with reuse of buffers, gives `run_table`'s bits."""
    shape = (2, 3, 17, 19)
    z = np.random.default_rng(1).standard_normal(shape).astype(np.float32)

    def network(net_id: int, x_scaled: np.ndarray, time: float, second_time: float | None, /) -> Any:
        return np.float32(0.3) * x_scaled * np.abs(x_scaled) - np.float32(0.1)

    def noise(stream: int) -> np.ndarray:
        return kernels.unit_noise([7, 8], shape[1:], stream)

    expected = run_table(table, z, network, noise, dtype=np.float32)

    x = np.float32(table.init_scale) * z
    anchor = np.zeros_like(x)
    history = [np.zeros_like(x) for _ in range(3)]
    for row in table.rows:
        F = network(row.net_id, np.float32(row.c_in) * x, row.time, None) if row.calls_network else None
        x_in = x.copy()
        # In place: the newest prediction takes the buffer of the oldest one.
        x0 = (history[2] if in_place else np.empty_like(x)) if row.calls_network else None
        x = kernels.apply_row(
            row, x, F, noise(row.stream) if row.n else None, history=history, anchor=anchor,
            out=x if in_place else None, x0_out=x0, implementation=implementation,
        )  # fmt: skip
        if x0 is not None:
            history = [x0, *history[:2]]
        if row.set_anchor:
            anchor = x_in
    assert_same_bits(x, expected)


@requires_native
def test_special_values_pass_through_alike() -> None:
    special = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-42, -1e-42, 3e38, -3e38, 1.0], np.float32)
    x, F = (np.ascontiguousarray(a) for a in np.array(list(itertools.product(special, special)), np.float32).T)
    z = x[::-1].copy()
    for row in (ROWS["affine with noise"], ROWS["clip"]):
        with np.errstate(all="ignore"):
            native, expected = (kernels.apply_row(row, x, F, z, implementation=i) for i in ("native", "reference"))
        # The sign and payload of a NaN are not part of IEEE 754's promise.
        np.testing.assert_array_equal(np.isnan(native), np.isnan(expected))
        assert_same_bits(np.nan_to_num(native, nan=0.0, posinf=None), np.nan_to_num(expected, nan=0.0, posinf=None))


@pytest.mark.parametrize("implementation", kernels.available_implementations())
def test_strided_inputs_are_copied(implementation: kernels.Implementation) -> None:
    given = arguments(ROWS["everything"], (2, 3, 8, 9))
    strided: dict[str, Any] = {
        name: np.asfortranarray(value) if isinstance(value, np.ndarray) else value for name, value in given.items()
    }
    strided["history"] = [np.repeat(past, 2, axis=0)[::2] for past in given["history"]]
    row = ROWS["everything"]
    assert_same_bits(
        kernels.apply_row(row, **strided, implementation=implementation),
        kernels.apply_row(row, **given, implementation=implementation),
    )


@requires_native
def test_partial_overlap_is_refused() -> None:
    buffer = np.zeros(101, np.float32)
    with pytest.raises(ValueError, match="overlap"):
        kernels.apply_row(Row(net_id=-1, r=0.5), buffer[:100], out=buffer[1:])
    with pytest.raises(ValueError, match="overlap"):
        kernels.apply_row(Row(net_id=-1, r=0.5), buffer, next_c_in=1.0, out=buffer, scaled_out=buffer)


x_8 = np.zeros(8, np.float32)


@pytest.mark.parametrize(
    ("row", "given", "code", "text"),
    [
        (
            ROWS["affine"],
            {"F": x_8.astype(np.float64)},
            "kernel-dtype",
            "F must be a NumPy array of float32, got float64",
        ),
        (ROWS["affine"], {"F": x_8.astype(np.float16)}, "kernel-dtype", "got float16"),
        (ROWS["affine"], {"F": None}, "kernel-dtype", "F must be a NumPy array of float32, got NoneType"),
        (ROWS["affine"], {"F": x_8[:7]}, "kernel-shape", r"F must have shape \(8,\), got \(7,\)"),
        (ROWS["affine"], {"F": x_8, "z": x_8}, "kernel-argument", "does not use z"),
        (ROWS["no network, no noise"], {"F": x_8}, "kernel-argument", "does not use F"),
        (ROWS["no network, no noise"], {"x0_out": x_8.copy()}, "kernel-argument", "no x0"),
        (ROWS["affine with noise"], {"F": x_8}, "kernel-dtype", "z must be"),
        (ROWS["one history"], {"F": x_8}, "kernel-dtype", r"history\[0\]"),
        (ROWS["anchor"], {"F": x_8}, "kernel-dtype", "anchor"),
        (ROWS["affine"], {"F": x_8, "next_c_in": 1.0}, "kernel-argument", "belong together"),
    ],
)
def test_misuse_is_one_clear_line(row: Row, given: dict[str, Any], code: str, text: str) -> None:
    with pytest.raises(UsageError, match=text) as caught:
        kernels.apply_row(row, x_8, **given)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


def test_explicit_native_refuses_what_has_no_kernel() -> None:
    with pytest.raises(UsageError, match="dynamic threshold"):
        kernels.apply_row(Row(threshold_ratio=0.9), x_8, x_8, implementation="native")
