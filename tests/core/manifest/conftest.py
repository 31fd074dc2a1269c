"""Fixtures of these tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from manifests import BODIES

from distill_rt.core import codec
from distill_rt.core.manifest import (
    KINDS,
    write_manifest,
)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def artifact(tmp_path: Path, kind) -> Path:
    directory = tmp_path / "artifact"
    (directory / "onnx").mkdir(parents=True)
    (directory / "weights.bin").write_bytes(bytes(range(256)))
    (directory / "onnx" / "graph.bin").write_bytes(b"graph")
    (directory / "empty").write_bytes(b"")
    write_manifest(directory, kind, codec.to_json(BODIES[kind]))
    return directory
