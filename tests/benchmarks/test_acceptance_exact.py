"""The float64 check of the acceptance run finds what it should: half-precision arithmetic, lost terms, wrong elements, NaN.

And what the kernels are timed against computes the same step.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from acceptance import exact
from acceptance.rows import FORMS, GUIDANCE, NEXT_C_IN, ddim_step, multistep_step

from distill_rt.core.guidance import combine_guidance
from distill_rt.kernels import reference

torch = pytest.importorskip("torch")

SHAPE = (3, 4, 32, 32)


def draws(num: int) -> list[Any]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randn(SHAPE, generator=generator) for _ in range(num)]


def float32_step(name: str) -> tuple[np.ndarray, Any]:
    """The NumPy reference's answer, and the float64 one."""
    form = FORMS[name]
    x, F, F_u, past, z = draws(5)
    w = np.full(3, GUIDANCE, np.float32)
    guided = combine_guidance(F_u.numpy(), F.numpy(), w) if form.guided else F.numpy()
    got, _ = reference.apply_row(
        form.row, x.numpy(), guided, z.numpy() if form.noise else None, [past.numpy()], None, wants_x0=True
    )
    combined = exact.guided(F, F_u if form.guided else None, torch.from_numpy(w))
    total, _ = exact.table_row(
        form.row, x, combined, history=(past,) if form.multistep else (), z=z if form.noise else None
    )
    return got, total


@pytest.mark.parametrize("name", FORMS)
def test_float32_is_within_the_bound(name: str) -> None:
    got, total = float32_step(name)
    assert total.ratio(torch.from_numpy(got)) <= 1.0
    for dtype in (torch.float16, torch.bfloat16):
        assert 0.9 < total.ratio(torch.from_numpy(got).to(dtype)) <= 1.0  # rounding once uses up the bound, nearly


@pytest.mark.parametrize("name", FORMS)
def test_wrong_arithmetic_is_not(name: str) -> None:
    got, total = float32_step(name)
    right = torch.from_numpy(got)
    halved = right.half().float()
    shifted = right.roll(1, -1)
    one = right.clone()
    one[1, 2, 3, 4] += 1e-3
    unwritten = right.clone()
    unwritten[2, 0, 0, 0] = math.nan
    for wrong in (halved, shifted, one, right * (1 + 1e-5), unwritten):
        assert total.ratio(wrong) > 1.0
    truncated = (right.view(torch.int32) & -65536).view(torch.float32).bfloat16()
    assert total.ratio(truncated) > 1.0  # bf16 cut off instead of rounded


def test_thresholds_and_rescaled_guidance() -> None:
    x, F, F_u = (values.double() for values in draws(3))
    row = dataclasses.replace(FORMS["multistep"].row, clip=None, threshold_ratio=0.5, threshold_max=9.0, h1=0.0)
    bound = torch.tensor([1.0, 1.5, 2.0])
    total, x0 = exact.table_row(row, x, exact.guided(F, None, None), bound=bound)
    assert x0 is not None
    s = bound.double().reshape(3, 1, 1, 1)
    wanted = torch.minimum(torch.maximum(row.p * x + row.q * F, -s), s) / s
    torch.testing.assert_close(x0.value, wanted)
    torch.testing.assert_close(total.value, row.r * x + row.g * wanted)
    scale = exact.guided(F, F_u, torch.full((3,), 2.0), torch.tensor([1.0, 0.5, 0.25]))
    torch.testing.assert_close(scale.value[1], 0.5 * (F_u + 2.0 * (F - F_u))[1])


@pytest.mark.parametrize("name", ["affine", "guided", "multistep"])
def test_the_unfused_operations_are_the_same_step(name: str) -> None:
    form = FORMS[name]
    x, F, F_u, past = (values.double() for values in draws(4))
    if form.multistep:
        got, x0, scaled = multistep_step(x, F, None, past, torch.float64)
    else:
        got, scaled = ddim_step(x, F, F_u if form.guided else None, 0.0, torch.float64)
        assert len(scaled) == 3 * form.copies
    combined = exact.guided(F, F_u if form.guided else None, torch.full((3,), GUIDANCE))
    total, wanted_x0 = exact.table_row(form.row, x, combined, history=(past,) if form.multistep else ())
    torch.testing.assert_close(got, total.value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scaled[:3], NEXT_C_IN * total.value, rtol=1e-6, atol=1e-6)
    if form.multistep:
        assert wanted_x0 is not None
        torch.testing.assert_close(x0, wanted_x0.value, rtol=1e-6, atol=1e-6)


def test_bytes_are_counted_by_hand() -> None:
    N = 100
    assert FORMS["affine"].row_bytes("fp32", "fp16", 2, N) == 2 * N * (4 + 4 + 2 + 2) + 64
    assert FORMS["guided"].row_bytes("fp16", "fp16", 2, N) == 2 * (N * (2 + 2 + 4 + 4) + 8) + 64
    assert FORMS["guided-noise"].row_bytes("fp16", "fp16", 1, N) == N * 12 + 16 + 64
    # x, the earlier x0, the next state, the new x0; F and the next input
    assert FORMS["multistep"].row_bytes("fp32", "bf16", 1, N) == N * (4 * 4 + 2 * 2) + 64
