"""Compute capabilities as targets: ``sm89``, and for TensorRT-RTX several in one plan, ``sm86+sm89``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import get_args

from distill_rt.core.artifacts import Precision
from distill_rt.core.errors import TargetError, UsageError

RTX_CAPABILITIES = (75, 80, 86, 89, 120, 121)
"""Members of `ComputeCapability` in TensorRT-RTX 1.7. 9.0 and 10.x are not among them: H100, H200 and B200 need TensorRT."""
TENSORRT_CAPABILITIES = (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121)
"""GPUs with a current driver; whether the installed TensorRT supports one of them, it says itself when it builds."""
FIRST_WITH: Mapping[Precision, int] = {"bf16": 80, "fp8": 89}
"""Older GPUs have no arithmetic for it; TensorRT-RTX refuses the build ("HW-specific datatypes: b16", "fp8_e4m3")."""
ADVICE: Mapping[Precision, Precision] = {"bf16": "fp16", "fp8": "int8"}
"""What to use instead: of the same size, on every GPU."""
TITLES: Mapping[Precision, str] = {"bf16": "bfloat16", "fp8": "8-bit float"}


def parse_capabilities(text: str, known: Sequence[int], *, target: str, several: bool) -> tuple[int, ...]:
    """Read the device part of a target: ``sm89`` -> (89,), ``sm86+sm89`` -> (86, 89), ascending, each once.

    Args:
        known: what this kind of target offers.
        target: its first part, for messages.
        several: whether one plan may serve more than one.

    Raises:
        UsageError: not of that form, unknown, or several where one is allowed.
    """
    names = [f"sm{number}" for number in known]
    parts = text.split("+")
    bad = [part for part in parts if not re.fullmatch(r"sm\d{2,3}", part) or part not in names]
    if bad:
        data_centre = target == "tensorrt-rtx" and any(part in ("sm90", "sm100", "sm103") for part in bad)
        raise UsageError(
            f"{target} has no device {bad[0]!r}; it has {', '.join(names)}"
            + (" (several joined by +)" if several else ""),
            code="target-unknown",
            hint=f"data-centre GPUs need the full TensorRT: --target tensorrt:{bad[0]}"
            if data_centre
            else f"write it as {target}:{names[-3]}",
            details={"devices": names},
        )
    if len(parts) > 1 and not several:
        raise UsageError(
            f"{target} compiles for one device at a time, got {text!r}",
            code="target-unknown",
            hint=f"compile one engine for each, or use --target tensorrt-rtx:{text} for GeForce and RTX cards",
        )
    return tuple(sorted({int(part.removeprefix("sm")) for part in parts}))


def check_arithmetic(precision: Precision, capabilities: Sequence[int], *, target: str) -> None:
    """Refuse a precision that a GPU of the target does not have.

    Raises:
        TargetError: names the GPU.
    """
    old = [number for number in capabilities if number < FIRST_WITH.get(precision, 0)]
    if old:
        possible = [name for name in get_args(Precision) if min(capabilities) >= FIRST_WITH.get(name, 0)]
        raise TargetError(
            f"{target} cannot compute in {precision}: sm{old[0]} has no {TITLES[precision]} arithmetic",
            code="precision-unsupported",
            hint=f"use --precision {ADVICE[precision]}",
            details={"precisions": possible},
        )
