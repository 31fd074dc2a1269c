"""The packed row: what the kernels read from device memory (no triton needed)."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from distill_rt.core.table import Row, StepTable
from distill_rt.kernels.triton import row_layout
from distill_rt.kernels.triton.row_layout import CALLS_NETWORK, FOLDED, KEEPS_X0, WORD, is_fast, pack_row, pack_table
from distill_rt.kernels.triton.variants import ROW_BLOCK, default_variants, is_aligned


def word(packed: np.ndarray, name: str) -> float:
    return float(packed[WORD[name]])


def integer(packed: np.ndarray, name: str) -> int:
    return int(packed.view(np.uint32)[WORD[name]])


def test_a_folded_row() -> None:
    row = Row(p=1.3, q=-0.7, r=0.2, g=0.9, f=0.4, n=0.35, stream=2**32 - 1)
    packed = pack_row(row, 0.25)
    a, b, n = row.folded()
    assert packed.dtype == np.float32
    assert packed.shape == (16,)
    np.testing.assert_array_equal(packed[:2], np.array([a, b], np.float32))
    assert word(packed, "n") == np.float32(n)
    assert word(packed, "f") == 0  # is part of b
    assert word(packed, "clip") == np.inf
    assert word(packed, "next_c_in") == 0.25
    assert integer(packed, "stream") == 2**32 - 1
    assert integer(packed, "flags") == CALLS_NETWORK | FOLDED
    assert is_fast(packed)
    assert not is_fast(pack_row(row, keeps_x0=True))


def test_a_general_row() -> None:
    row = Row(p=1.1, q=-0.4, clip=0.5, r=0.3, g=1.4, f=0.2, h1=-0.45, h2=0.3, h3=0.2, k=0.6, n=0.1, stream=4)
    packed = pack_row(row, keeps_x0=True)
    expected = [row.r, row.g, row.p, row.q, 0.5, 0.0, 1.0, row.f, row.h1, row.h2, row.h3, row.k, row.n, 1.0]
    np.testing.assert_array_equal(packed[:14], np.array(expected, np.float32))
    assert integer(packed, "stream") == 4
    assert integer(packed, "flags") == CALLS_NETWORK | KEEPS_X0
    assert not is_fast(packed)


def test_a_row_without_network() -> None:
    packed = pack_row(Row(net_id=-1, r=0.8, g=5.0, f=3.0, n=0.6, stream=2), keeps_x0=True)
    assert integer(packed, "flags") == 0
    assert (word(packed, "x_weight"), word(packed, "second_weight"), word(packed, "f")) == (np.float32(0.8), 0, 0)


def test_a_table() -> None:
    table = StepTable(init_scale=14.5, rows=(Row(c_in=0.5), Row(c_in=0.25, h1=-0.5), Row(c_in=0.125)))
    packed = pack_table(table)
    assert packed.shape == (3, row_layout.NUM_WORDS)
    assert packed.flags.c_contiguous
    assert packed[:, WORD["next_c_in"]].tolist() == [0.25, 0.125, 1.0]
    # The second row reads the first one's x0, so all write theirs.
    assert all(integer(row, "flags") & KEEPS_X0 for row in packed)
    start = row_layout.pack_start(table)
    assert (word(start, "n"), word(start, "next_c_in"), word(start, "x_weight")) == (14.5, 0.5, 0)
    assert integer(start, "stream") == 0


def test_variants_have_unique_names_and_unaligned_fallbacks() -> None:
    variants = default_variants([("fp32", "fp16"), ("fp16", "fp16")], ["fp32", "fp16"])
    names = [variant.name for variant in variants]
    assert len(set(names)) == len(names)
    assert "table_row-fp32-fp16-guided-general-noise" in names
    for variant in variants:
        signature = variant.signature()
        assert list(signature)[-1] == "BLOCK"
        indices = [list(signature)[i] for i in variant.aligned_parameters()]
        assert ("num" in indices) == variant.aligned
        assert "num_pixels" not in indices
        assert variant.block % (32 * variant.num_warps) == 0
    general = [v for v in variants if v.kernel == "table_row" and dict(v.features)["GENERAL"]]
    assert {v.aligned for v in general} == {True, False}


@pytest.mark.parametrize(
    ("addresses", "sizes", "aligned"),
    [([256, 4096], [16384, 0], True), ([256, 4100], [16384], False), ([256], [16384, 35], False)],
)
def test_alignment(addresses: list[int], sizes: list[int], aligned: bool) -> None:
    assert is_aligned(addresses, sizes) == aligned
    assert ROW_BLOCK % 16 == 0


def test_the_runtime_side_needs_numpy_alone() -> None:
    modules = ["triton.row_layout", "triton.variants", "triton.ptx", "pack", "aot", "loaded_pack"]
    code = (
        f"import importlib, sys\nfor m in {modules!r}: importlib.import_module('distill_rt.kernels.' + m)\n"
        "print([m for m in ('torch', 'triton', 'cuda') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
