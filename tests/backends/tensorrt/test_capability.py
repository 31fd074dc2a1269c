"""Targets by compute capability: what is read, and what is refused with which advice."""

from __future__ import annotations

import pytest

from distill_rt.backends.registry import Target, backend_for
from distill_rt.backends.tensorrt.capability import check_arithmetic
from distill_rt.core.errors import TargetError, UsageError


@pytest.mark.parametrize(
    ("text", "capabilities"),
    [
        ("tensorrt:sm90", (90,)),
        ("tensorrt:sm100", (100,)),
        ("tensorrt-rtx:sm75", (75,)),
        ("tensorrt-rtx:sm120+sm89", (89, 120)),
        ("tensorrt-rtx:sm89+sm89", (89,)),
        ("tensorrt-rtx:sm75+sm80+sm86+sm89+sm120+sm121", (75, 80, 86, 89, 120, 121)),
    ],
)
def test_read(text: str, capabilities: tuple[int, ...]) -> None:
    target = Target.parse(text)
    backend = backend_for(target)
    assert backend.capabilities == capabilities  # type: ignore[attr-defined]
    assert f"{backend.name}:{backend.device}" == str(target)


def test_one_spelling_of_several_devices() -> None:
    assert str(Target.parse("tensorrt-rtx:sm120+sm86+sm86")) == "tensorrt-rtx:sm86+sm120"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("tensorrt-rtx:sm42", "no device 'sm42'; it has sm75, sm80, sm86, sm89, sm120, sm121"),
        ("tensorrt-rtx:89", "no device '89'"),
        ("tensorrt-rtx:sm89+", "no device ''"),
        ("tensorrt-rtx:SM89", "no device 'SM89'"),
        ("tensorrt-rtx", "no device ''"),
        ("tensorrt:cuda", "no device 'cuda'"),
        ("tensorrt:sm80+sm90", "one device at a time"),
        ("tensorrt-rtx:sm90", "--target tensorrt:sm90"),
        ("tensorrt-rtx:sm89+sm100", "--target tensorrt:sm100"),
    ],
)
def test_refused(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Target.parse(text)
    assert caught.value.code == "target-unknown"
    assert says in str(caught.value)


def test_bfloat16_needs_ampere() -> None:
    check_arithmetic("bf16", (80, 120), target="tensorrt-rtx:sm80+sm120")
    check_arithmetic("fp16", (75,), target="tensorrt-rtx:sm75")
    with pytest.raises(TargetError) as caught:
        check_arithmetic("bf16", (75, 89), target="tensorrt-rtx:sm75+sm89")
    assert "sm75 has no bfloat16" in caught.value.message


def test_8_bit_floats_need_ada() -> None:
    check_arithmetic("fp8", (89, 120), target="tensorrt-rtx:sm89+sm120")
    check_arithmetic("int8", (75, 89), target="tensorrt-rtx:sm75+sm89")
    with pytest.raises(TargetError) as caught:
        check_arithmetic("fp8", (86, 89), target="tensorrt-rtx:sm86+sm89")
    assert "sm86 has no 8-bit float arithmetic" in caught.value.message
    assert "--precision int8" in caught.value.hint
    assert caught.value.details == {"precisions": ["fp32", "bf16", "fp16", "int8"]}
