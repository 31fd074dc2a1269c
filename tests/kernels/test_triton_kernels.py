"""The Triton kernels give the bits of the NumPy reference: in Triton's interpreter on the CPU, and on a GPU where there is one.

Interpreted arithmetic is NumPy's, so without a GPU this holds the kernels' logic and order of operations; that the compiled
code keeps both is then read from its PTX (test_aot.py).
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from triton_runner import Given, Runner, runner

from distill_rt.core import noise
from distill_rt.core.guidance import combine_guidance
from distill_rt.core.optional import installed
from distill_rt.core.table import Row, StepTable, run_table
from distill_rt.kernels import reference
from distill_rt.kernels.triton.row_layout import WORD, is_fast, pack_row, pack_start, pack_table

pytestmark = pytest.mark.skipif(
    not (installed("triton") and installed("torch")), reason="needs triton and torch (pip install triton)"
)

# Largest difference to the reference, in units of the last place of the output's dtype. Everything is exact: the float32
# arithmetic has the reference's order, and it is rounded to the output once. But the interpreter (Triton 3.4 to 3.9)
# truncates where compiled code rounds to bf16 (test_aot.py finds its cvt.rn). Only a sum over an image may differ.
ULP = {"fp32": 0, "fp16": 0, "bf16": 1}
SUM_TOLERANCE = 2e-6
# NumPy before 2.4 interpolates quantiles in float64, which can move the reference's own last bits.
THRESHOLD_ULP = 0 if np.lib.NumpyVersion(np.__version__) >= "2.4.0" else 4

SEEDS = np.array([0, 2**64 - 1, 12345678901234567890], np.uint64)
PAIRS = [("fp32", "fp32"), ("fp32", "fp16"), ("fp32", "bf16"), ("fp16", "fp16"), ("bf16", "bf16")]
# (B, ...): around the block of 512 elements.
SHAPES = [(1, 1), (2, 3, 5, 7), (3, 511), (1, 4, 16, 8), (2, 1025)]

ROWS = {
    "affine": Row(p=1.3, q=-0.7, r=0.2, g=0.9),
    "affine with noise": Row(p=1.3, q=-0.7, r=0.2, g=0.9, n=0.35, stream=2**32 - 1),
    "clip": Row(p=1.3, q=-0.7, clip=0.8, r=0.2, g=0.9),
    "clip, raw output, noise": Row(p=1.3, q=-0.7, clip=0.8, r=0.2, g=0.9, f=-0.3, n=0.35, stream=1),
    "threshold": Row(p=1.3, q=-0.7, threshold_ratio=0.9, threshold_max=2.0, r=0.2, g=0.9),
    "one history": Row(p=1.1, q=-0.4, r=0.3, g=1.4, h1=-0.45),
    "third history alone": Row(p=1.1, q=-0.4, r=0.3, g=1.4, h3=-0.11),
    "anchor": Row(p=1.1, q=-0.4, r=0.3, g=1.4, k=0.77),
    "everything": Row(
        p=1.1, q=-0.4, clip=0.5, r=0.3, g=1.4, f=0.2, h1=-0.45, h2=0.3, h3=0.2, k=0.6, n=0.1, stream=4
    ),
    "no network": Row(net_id=-1, r=0.8, n=0.6, stream=2),
    "no network, anchor": Row(net_id=-1, r=0.8, g=0.0, k=0.2),
}  # fmt: skip


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def run(request: pytest.FixtureRequest) -> Iterator[Runner]:
    if request.param == "cuda":
        import torch

        if not torch.cuda.is_available():
            pytest.skip("no NVIDIA GPU")
    with runner(request.param) as call:
        yield call


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values that `dtype` can hold, rounded half to even."""
    if dtype == "fp16":
        return values.astype(np.float16).astype(np.float32)
    if dtype == "bf16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)
    return values


def assert_equal(actual: np.ndarray, expected: np.ndarray, dtype: str, ulp: int = 0) -> None:
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    unit = {"fp32": 0, "fp16": 13, "bf16": 16}[dtype]
    distance = actual.view(np.int32).astype(np.int64) - expected.view(np.int32)
    assert np.abs(distance).max(initial=0) <= max(ULP[dtype], ulp) << unit


def draws(seed: int, num: int, shape: tuple[int, ...], dtype: str) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rounded(rng.standard_normal(shape).astype(np.float32), dtype) for _ in range(num)]


@pytest.mark.parametrize("num", [1, 3, 4, 5, 511, 512, 513, 1027])
@pytest.mark.parametrize("stream", [0, 7, 2**32 - 1])
def test_noise_has_the_bits_of_numpy(run: Runner, num: int, stream: int) -> None:
    row = pack_row(Row(net_id=-1, n=1.0, stream=max(stream, 1)))
    row.view(np.uint32)[WORD["stream"]] = stream
    got = run("philox_normal", tensors(out=np.zeros((3, num)), row=row, seeds=SEEDS, gap=num % 3))
    assert_equal(got["out"], noise.unit_noise(SEEDS, (num,), stream), "fp32")


def test_noise_golden_hash(run: Runner) -> None:
    """The same value as in tests/core/test_noise.py ("latent"); its draws reach both branches of the transform."""
    row = pack_start(StepTable(rows=(ROWS["affine"],)))
    got = run("philox_normal", tensors(out=np.zeros((2, 4, 64, 64)), row=row, seeds=np.array([0, 1], np.uint64)))
    assert np.abs(got["out"]).max() > 3.5
    assert (
        hashlib.sha256(got["out"].astype("<f4").tobytes()).hexdigest()
        == "9e521173e3224bfd88fd4c1577b17fa957b076e9f6a13dc30af30d4d43f5099c"
    )


@pytest.mark.parametrize(("state", "network"), PAIRS)
def test_initial_state_and_first_network_input(run: Runner, state: str, network: str) -> None:
    table = StepTable(init_scale=14.6, rows=(Row(c_in=0.068),))
    given = tensors(out=np.zeros((3, 5, 11)), row=pack_start(table), seeds=SEEDS, gap=3, state=state, network=network)
    got = run(
        "philox_normal", given | {"scaled": Given(values=np.zeros((6, 5, 11)), dtype=network, gap=1)}, num_copies=2
    )
    x = np.float32(14.6) * noise.unit_noise(SEEDS, (5, 11))
    assert_equal(got["out"], rounded(x, state), state)
    for half in np.split(got["scaled"], 2):
        assert_equal(half, rounded(np.float32(0.068) * x, network), network)


def tensors(*, state: str = "fp32", network: str = "fp32", gap: int = 0, **arrays: np.ndarray | None) -> dict[str, Any]:
    """Arguments of a kernel: which arrays belong to the state, to the network, and to neither goes by their names."""
    given: dict[str, Any] = {}
    for name, array in arrays.items():
        if array is None:
            given[name] = None
        elif name == "seeds":
            given[name] = Given(values=array.view(np.int64), dtype="i64")
        elif name in ("row", "w", "factor", "bound", "phi"):
            given[name] = Given(values=array.astype(np.float32))
        else:
            # Another distance for each of the three families that has a stride of its own.
            dtype, distance = {"F": (network, 3 * gap), "F_u": (network, 3 * gap), "scaled": (network, 2 * gap)}.get(
                name, (state, gap)
            )
            given[name] = Given(values=array.astype(np.float32), dtype=dtype, gap=distance)
    return given


@dataclasses.dataclass(kw_only=True)
class Case:
    """Everything that one launch of table_row reads, and what it should write."""

    row: Row
    shape: tuple[int, ...]
    state: str = "fp32"
    network: str = "fp32"
    guided: bool = False
    gap: int = 0

    def __post_init__(self) -> None:
        self.row = StepTable(rows=(self.row,)).as_float32().rows[0]
        self.x, self.anchor, *self.history = draws(1, 5, self.shape, self.state)
        self.F, self.F_u = draws(2, 2, self.shape, self.network)
        self.w = np.linspace(1.5, 7.5, self.shape[0]).astype(np.float32)
        self.next_c_in = 0.37

    def run(self, run: Runner, *, general: bool = True, num_copies: int = 1) -> dict[str, np.ndarray]:
        row, shape = pack_row(self.row, self.next_c_in, keeps_x0=general), self.shape
        given = tensors(
            state=self.state, network=self.network, gap=self.gap,
            x=self.x, out=np.zeros(shape), row=row,
            F=self.F if self.row.calls_network else None,
            F_u=self.F_u if self.guided else None, w=self.w if self.guided else None,
            factor=np.ones(shape[0]) if self.guided else None,
            seeds=SEEDS[: shape[0]] if self.row.n else None,
            anchor=self.anchor if general else None,
            x0_out=np.zeros(shape) if general and self.row.calls_network else None,
            scaled=np.zeros((num_copies * shape[0], *shape[1:])),
        )  # fmt: skip
        if general:
            given["history"] = [Given(values=past, dtype=self.state, gap=self.gap) for past in self.history]
        if self.row.threshold_ratio is not None:
            names = ("x", "F", "row", "F_u", "w", "factor")
            bound = Given(values=np.zeros(shape[0], np.float32))
            found = run("dynamic_threshold", {k: given[k] for k in names if k in given} | {"bound": bound})
            given["bound"] = Given(values=found["bound"])
        return run("table_row", given, general=general, num_copies=num_copies)

    def expected(self) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """x_next, x0 and the scaled copy, each as its dtype holds it."""
        F = (combine_guidance(self.F_u, self.F, self.w) if self.guided else self.F) if self.row.calls_network else None
        z = noise.unit_noise(SEEDS[: self.shape[0]], self.shape[1:], self.row.stream) if self.row.n else None
        x_next, x0 = reference.apply_row(self.row, self.x, F, z, self.history, self.anchor, wants_x0=True)
        scaled = rounded(np.float32(self.next_c_in) * x_next, self.network)
        return rounded(x_next, self.state), None if x0 is None else rounded(x0, self.state), scaled


def check(case: Case, got: dict[str, np.ndarray], num_copies: int = 1) -> None:
    x_next, x0, scaled = case.expected()
    assert_equal(got["out"], x_next, case.state)
    if "x0_out" in got:
        assert x0 is not None
        assert_equal(got["x0_out"], x0, case.state)
    for half in np.split(got["scaled"], num_copies):
        assert_equal(half, scaled, case.network)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_every_kind_of_row(run: Runner, row: Row, guided: bool) -> None:
    case = Case(row=row, shape=(2, 3, 5, 7), network="fp16", guided=guided and row.calls_network, gap=3)
    check(case, case.run(run))


@pytest.mark.parametrize(("state", "network"), PAIRS)
@pytest.mark.parametrize("name", ["affine with noise", "everything"])
def test_every_pair_of_dtypes(run: Runner, name: str, state: str, network: str) -> None:
    case = Case(row=ROWS[name], shape=(2, 4, 9, 8), state=state, network=network, guided=True)
    check(case, case.run(run, num_copies=2), num_copies=2)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("gap", [0, 5])
def test_every_size_and_distance_of_images(run: Runner, shape: tuple[int, ...], gap: int) -> None:
    case = Case(row=ROWS["everything"], shape=shape, guided=True, gap=gap)
    check(case, case.run(run))


@pytest.mark.parametrize("name", ["affine", "affine with noise"])
@pytest.mark.parametrize("guided", [False, True])
def test_the_fast_form_is_the_general_one(run: Runner, name: str, guided: bool) -> None:
    case = Case(row=ROWS[name], shape=(2, 3, 5, 7), network="fp16", guided=guided)
    fast, general = case.run(run, general=False), case.run(run)
    check(case, fast)
    for output in ("out", "scaled"):
        np.testing.assert_array_equal(fast[output], general[output])


def test_what_a_row_does_not_weigh_is_not_read(run: Runner) -> None:
    case = Case(row=ROWS["one history"], shape=(2, 77))
    expected = case.expected()[0]
    case.history[1][:], case.history[2][:], case.anchor[:] = np.nan, np.inf, np.nan
    np.testing.assert_array_equal(case.run(run)["out"], expected)


TABLES = {
    "few steps": StepTable(init_scale=14.6, rows=(ROWS["affine with noise"], ROWS["affine"])),
    "multistep": StepTable(
        rows=(ROWS["affine"], ROWS["one history"], ROWS["everything"], ROWS["no network"], ROWS["third history alone"])
    ),
    "threshold": StepTable(rows=(ROWS["threshold"], Row(c_in=0.5, p=0.9, q=0.2, r=0.1, g=0.9))),
    "two evaluations": StepTable(rows=(Row(p=0.9, q=0.2, r=0.1, g=0.9, set_anchor=True), ROWS["anchor"])),
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES.keys())
def test_rows_make_the_table(run: Runner, table: StepTable) -> None:
    """A runtime's loop, from seeds to the sample, gives the bits of `run_table`."""
    table = table.as_float32()
    seeds, shape = SEEDS[:2], (2, 3, 9, 7)

    def network(net_id: int, x_scaled: Any, time: float, second_time: float | None, /) -> Any:
        return np.float32(0.3) * x_scaled * np.abs(x_scaled) - np.float32(0.1)

    z = noise.unit_noise(seeds, shape[1:])
    expected = run_table(table, z, network, lambda stream: noise.unit_noise(seeds, shape[1:], stream), dtype=np.float32)
    zeros = np.zeros(shape, np.float32)
    start = run("philox_normal", tensors(out=zeros, scaled=zeros, row=pack_start(table), seeds=seeds))
    x, scaled, anchor, history = start["out"], start["scaled"], zeros, [zeros] * 3
    packed = pack_table(table)
    for row, words in zip(table.rows, packed, strict=True):
        F = network(row.net_id, scaled, row.time, None) if row.calls_network else None
        given = tensors(x=x, F=F, row=words)
        if row.threshold_ratio is not None:
            given["bound"] = Given(values=run("dynamic_threshold", given | tensors(bound=np.zeros(2)))["bound"])
        fast = is_fast(words)
        given |= tensors(out=zeros, scaled=zeros, seeds=seeds if row.n else None)
        if not fast:
            given |= tensors(x0_out=zeros, anchor=anchor)
            given["history"] = [Given(values=past) for past in history]
        got = run("table_row", given, general=not fast)
        anchor = x if row.set_anchor else anchor
        x, scaled = got["out"], got["scaled"]
        if row.calls_network and table.num_history:
            history = [got["x0_out"], *history[:2]]
    assert_equal(x, expected, "fp32", THRESHOLD_ULP if any(row.threshold_ratio for row in table.rows) else 0)


@pytest.mark.parametrize("shape", [(3, 7), (2, 3, 32, 33)], ids=str)
@pytest.mark.parametrize("network", ["fp32", "fp16"])
def test_rescaled_guidance(run: Runner, shape: tuple[int, ...], network: str) -> None:
    F, F_u = draws(3, 2, shape, network)
    w, phi = np.linspace(2, 9, shape[0]).astype(np.float32), np.full(shape[0], 0.7, np.float32)
    phi[0] = 0.0
    given = tensors(network=network, gap=2, F=F, F_u=F_u, w=w, phi=phi, factor=np.zeros(shape[0]))
    factor = run("guidance_factor", given)["factor"]
    assert factor[0] == 1.0
    for b in range(1, shape[0]):
        exact = combine_guidance(F_u[b : b + 1].astype(np.float64), F[b : b + 1].astype(np.float64), float(w[b]))
        wanted = 0.7 * F[b].std(dtype=np.float64) / exact.std() + 0.3
        assert factor[b] == pytest.approx(wanted, rel=SUM_TOLERANCE)
    x = np.zeros(shape, np.float32)
    row = pack_row(Row(q=1.0, g=1.0))
    given = tensors(network=network, x=x, F=F, F_u=F_u, w=w, factor=factor, out=x, row=row)
    guided = run("table_row", given, general=False)["out"]
    for b in range(shape[0]):
        wanted = combine_guidance(F_u[b : b + 1], F[b : b + 1], w[b : b + 1], rescale=float(phi[b]))
        np.testing.assert_allclose(guided[b : b + 1], wanted, rtol=SUM_TOLERANCE, atol=1e-7)


@pytest.mark.parametrize("ratio", [0.02, 0.5, 0.9, 0.995, 1.0])
@pytest.mark.parametrize("num", [1, 2, 700, 1025])
def test_dynamic_threshold_is_numpys_quantile(run: Runner, ratio: float, num: int) -> None:
    x, F = draws(4, 2, (2, num), "fp32")
    x, F = 30 * x, 30 * F
    x[1, : num // 3] = x[1, 0]  # equal values around the quantile
    F[1, : num // 3] = F[1, 0]
    row = StepTable(rows=(Row(p=1.3, q=-0.7, threshold_ratio=ratio, threshold_max=1e6),)).as_float32().rows[0]
    given = tensors(gap=1, x=x, F=F, row=pack_row(row), bound=np.zeros(2))
    got = run("dynamic_threshold", given)["bound"]
    assert row.threshold_ratio is not None
    x0 = np.float32(row.p) * x + np.float32(row.q) * F
    wanted = np.maximum(np.quantile(np.abs(x0), row.threshold_ratio, axis=1), np.float32(1))
    assert_equal(got, wanted.astype(np.float32), "fp32", THRESHOLD_ULP)


def test_dynamic_threshold_limits_and_not_a_number(run: Runner) -> None:
    x = np.array([[0.1, -0.2, 0.3], [5, -6, 7], [np.nan, 1, 2], [np.inf, -np.inf, 1]], np.float32)
    row = pack_row(Row(p=1.0, q=0.0, threshold_ratio=0.5, threshold_max=4.0))
    got = run("dynamic_threshold", tensors(x=x, F=np.zeros_like(x), row=row, bound=np.zeros(4)))["bound"]
    with np.errstate(invalid="ignore"):  # NumPy interpolates between two infinities
        wanted = np.clip(np.quantile(np.abs(x), 0.5, axis=1), 1.0, 4.0)
    np.testing.assert_array_equal(got, wanted.astype(np.float32))
    np.testing.assert_array_equal(got[:3], np.array([1.0, 4.0, np.nan], np.float32))


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 7), (3, 4, 16, 17), (1, 3, 32, 32)], ids=str)
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_pixels_have_the_bytes_of_the_reference(run: Runner, shape: tuple[int, ...], dtype: str) -> None:
    (x,) = draws(5, 1, shape, dtype)
    B, C, H, W = shape
    out = Given(values=np.zeros((B, H, W, C), np.uint8), dtype="u8")
    got = run("to_uint8", {"x_BCHW": Given(values=x, dtype=dtype, gap=7), "out_BHWC": out})
    np.testing.assert_array_equal(got["out_BHWC"], reference.to_uint8(x))


def test_pixels_at_the_edges(run: Runner) -> None:
    halves = (np.arange(255, dtype=np.float32) + np.float32(0.5)) / np.float32(127.5) - np.float32(1)
    special = np.array([-1, 1, 0, -2, 2, np.nan, np.inf, -np.inf, 1e30, -1e-30, 3.4e38], np.float32)
    x = np.concatenate([special, halves]).reshape(1, 1, 1, -1)
    with np.errstate(all="ignore"):
        wanted = reference.to_uint8(x)
    out = Given(values=np.zeros_like(wanted), dtype="u8")
    got = run("to_uint8", {"x_BCHW": Given(values=x), "out_BHWC": out})["out_BHWC"]
    np.testing.assert_array_equal(got, wanted)
    assert got.reshape(-1)[:10].tolist() == [0, 255, 128, 0, 255, 0, 255, 0, 255, 128]


def test_misuse_is_one_clear_line(run: Runner) -> None:
    x = np.zeros((2, 8), np.float32)
    row = pack_row(Row(r=0.5, n=0.5, stream=1))
    with pytest.raises(Exception, match="F_u, w and factor together"):
        run("table_row", tensors(x=x, F=x, F_u=x, out=x, row=row))
    with pytest.raises(Exception, match="fast form"):
        run("table_row", tensors(x=x, F=None, out=x, row=row), general=False)
    with pytest.raises(Exception, match="must be one number"):
        run("table_row", tensors(x=x, row=row, gap=1) | tensors(F=x, out=x))
