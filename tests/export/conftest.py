"""Fixtures of the export tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from handmade import write_bundle


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test touches the user's cache."""
    monkeypatch.setenv("DISTILL_RT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A handmade bundle with embedded guidance; not to be changed."""
    return write_bundle(tmp_path_factory.mktemp("handmade") / "handmade.bundle")


@pytest.fixture
def own_bundle(tmp_path: Path) -> Path:
    """One that the test may damage."""
    return write_bundle(tmp_path / "own.bundle")
