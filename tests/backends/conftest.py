"""Fixtures of the backend tests: one handmade bundle, engines compiled from it, a cache of our own."""

from __future__ import annotations

from pathlib import Path

import pytest
from handmade import write_bundle

from distill_rt.export.compile import compile_bundle


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's cache."""
    monkeypatch.setenv("DISTILL_RT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("handmade") / "handmade.bundle")


@pytest.fixture
def engine(bundle: Path, tmp_path: Path) -> Path:
    """An engine for ONNX Runtime that the test may damage."""
    return compile_bundle(
        bundle, "onnxruntime:cpu", tmp_path / "engine", batches=(1, 3), num_threads=1, use_cache=False
    )
