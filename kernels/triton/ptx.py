"""Reads what matters from PTX text: the entry's parameters, and instructions whose result is not the reference's."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ENTRY = re.compile(r"\.visible\s+\.entry\s+(\w+)\s*\(([^)]*)\)")
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.([a-z]\d+)\s+(\.ptr)?")
_ARCH = re.compile(r"^\.target\s+(\w+)", re.MULTILINE)
_VERSION = re.compile(r"^\.version\s+(\d+\.\d+)", re.MULTILINE)
_INSTRUCTION = re.compile(r"^\s*(?:@!?%\w+\s+)?([a-z][a-z0-9_]*(?:\.[a-z0-9_:]+)+)\s", re.MULTILINE)
_FLOAT_TYPES = {"f16", "f16x2", "bf16", "bf16x2", "f32", "f32x2", "f64", "tf32"}
# One correctly rounded answer if they say `.rn`; without it an assembler may fuse a product and a sum.
_ROUNDED = {"add", "sub", "mul", "div", "sqrt"}
_EXACT = {
    "mov", "ld", "st", "selp", "setp", "set", "neg", "abs", "min", "max", "copysign", "slct", "testp", "shfl", "bar",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A kernel's entry point.

    Args:
        name: the symbol to look up.
        parameters: (size in bytes, whether it is marked as a pointer), in order.
        arch: for example "sm_90a".
        ptx_version: for example "8.0".
    """

    name: str
    parameters: tuple[tuple[int, bool], ...]
    arch: str
    ptx_version: str


def parse_entry(ptx: str) -> Entry:
    """The one entry of a module.

    Raises:
        ValueError: the text has none or several, or a parameter that is no scalar.
    """
    entries = _ENTRY.findall(ptx)
    if len(entries) != 1:
        raise ValueError(f"PTX: expected one entry, found {len(entries)}")
    name, parameters = entries[0]
    found = []
    for line in filter(None, (part.strip() for part in parameters.split(","))):
        match = _PARAMETER.match(line)
        if match is None or "[" in line:
            raise ValueError(f"PTX: cannot read the parameter {line!r}")
        found.append((int(match[1][1:]) // 8, match[2] is not None))
    arch, version = _ARCH.search(ptx), _VERSION.search(ptx)
    if arch is None or version is None:
        raise ValueError("PTX: no .target or .version")
    return Entry(name=name, parameters=tuple(found), arch=arch[1], ptx_version=version[1])


def inexact_instructions(ptx: str) -> tuple[str, ...]:
    """Floating-point instructions that are not one correctly rounded operation each: fused, approximate or unmarked.

    A square root or a quotient that flushes denormal results (``.ftz``, Triton 3.4) passes: no kernel of ours takes one of
    numbers so small.
    """
    return tuple(sorted({name for name in _INSTRUCTION.findall(ptx) if not _is_exact(name.split("."))}))


def _is_exact(words: list[str]) -> bool:
    operation, modifiers = words[0], words[1:]
    if not _FLOAT_TYPES & set(modifiers) or operation in _EXACT:
        return True
    if operation == "cvt":
        return "rn" in modifiers or _widens(modifiers) or "rzi" in modifiers
    ftz = "ftz" in modifiers and operation not in ("sqrt", "div")
    return (
        operation in _ROUNDED
        and "rn" in modifiers
        and "full" not in modifiers
        and "approx" not in modifiers
        and not ftz
    )


def _widens(modifiers: list[str]) -> bool:
    """Conversions to a wider type need no rounding."""
    target, source = modifiers[-2:]
    return int(re.sub(r"\D+", "", target)) > int(re.sub(r"\D+", "", source))
