"""Fixtures that several folders of tests share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_engine import make_bundle, make_engine, make_student, tiny_spec


@pytest.fixture(autouse=True)
def _no_shared_cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No test reads or fills the engine cache of whoever runs it."""
    monkeypatch.setenv("DISTILL_RT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One intact directory of each kind, to be copied before anybody damages it."""
    root = tmp_path_factory.mktemp("artifacts")
    spec = tiny_spec()
    return {
        "student": make_student(root / "tiny", spec),
        "bundle": make_bundle(root / "tiny.bundle", spec),
        "engine": make_engine(root / "compiled" / "tiny.engine", spec),
    }


@pytest.fixture(scope="session")
def engine(artifacts: dict[str, Path]) -> Path:
    """An onnxruntime:cpu engine for `tiny_spec()`, batches 1, 4, 16. Read only."""
    return artifacts["engine"]
