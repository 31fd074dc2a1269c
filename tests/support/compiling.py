"""What tests of compiling share: targets, a callback that remembers, refusals, and what lies in a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_rt.backends import processor
from distill_rt.backends.openvino import BF16_INSTRUCTION_SETS
from distill_rt.core.errors import DistillError
from distill_rt.export import compile_bundle

ORT, OV = "onnxruntime:cpu", "openvino:cpu"
needs_bf16 = pytest.mark.skipif(
    not BF16_INSTRUCTION_SETS & processor.instruction_sets(), reason="this processor has no bfloat16 instructions"
)


class Stages:
    """A progress callback that keeps what it was told."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, stage: str, done: int = 0, total: int = 0, /) -> None:
        self.names.append(stage)

    def compiled(self, target: str) -> bool:
        return f"compiling for {target}" in self.names


def refused(family: type[DistillError], *args: Any, **kwargs: Any) -> DistillError:
    with pytest.raises(family) as caught:
        compile_bundle(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return caught.value


def entries(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def cached(cache_dir: Path) -> list[Path]:
    engines = cache_dir / "engines"
    return [path for path in engines.iterdir() if path.is_dir()] if engines.exists() else []
