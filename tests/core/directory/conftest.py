"""Where the artifact of a test goes."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def final(tmp_path: Path) -> Path:
    return tmp_path / "artifact"


@pytest.fixture
def empty(final: Path):
    """After the test, nothing but what it names may stand beside the artifact."""
    yield
    assert list(final.parent.iterdir()) == []
