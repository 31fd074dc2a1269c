"""The fingerprint changes with everything that decides an engine, and with nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from distill_rt.backends import processor
from distill_rt.backends.base import CompileOptions
from distill_rt.backends.fingerprint import engine_parts, fingerprint
from distill_rt.backends.registry import Target, backend_for
from distill_rt.core.artifacts import Precision


def key(
    bundle: str = "a" * 64,
    target: str = "openvino:cpu",
    batches: tuple[int, ...] = (1, 4),
    precision: Precision = "fp32",
    num_threads: int = 2,
) -> str:
    parsed = Target.parse(target)
    parts = engine_parts(
        bundle_digest=bundle,
        target=parsed,
        backend=backend_for(parsed),
        batches=batches,
        options=CompileOptions(precision=precision, num_threads=num_threads),
    )
    return fingerprint(parts)


def test_it_is_the_same_for_the_same() -> None:
    assert key() == key()
    assert len(key()) == 64
    assert key(batches=(4, 1)) == key(batches=(1, 4))


@pytest.mark.parametrize(
    "change",
    [
        {"bundle": "b" * 64},
        {"target": "onnxruntime:cpu"},
        {"batches": (1,)},
        {"precision": "bf16"},
        {"num_threads": 1},
    ],
)
def test_it_changes_with_the_request(change: dict[str, Any]) -> None:
    assert key(**change) != key()


def test_it_changes_with_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import openvino

    before = key()
    with monkeypatch.context() as patch:
        patch.setattr(openvino, "get_version", lambda: "2099.0")
        assert key() != before
    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset({"avx2"}))
    assert key() != before
