"""Directories of all three kinds, and what every loader does with them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from contracts import contract

from distill_rt.core.artifacts import BundleBody, EngineBody, GateReport, StudentBody
from distill_rt.core.artifacts import Distance as D
from distill_rt.core.errors import ArtifactError
from distill_rt.core.manifest import (
    Manifest,
    decode_body,
    read_manifest,
    verify_files,
)

DISTANCE = D(relative_l2=0.0, psnr_db=100.0, cosine=1.0)
GATE = GateReport(component_bar=DISTANCE, trajectory_bar=DISTANCE, components={}, trajectories={})
BODIES: dict[str, Any] = {
    "student": StudentBody(spec=contract(), weights=("weights.bin",)),
    "bundle": BundleBody(
        spec=contract(), student_digest="", mode="step", components={}, golden="weights.bin", versions={}
    ),
    "engine": EngineBody(
        spec=contract(),
        bundle_digest="",
        target="onnxruntime:cpu",
        precision="fp32",
        fingerprint="",
        fingerprint_parts={},
        batches=(1,),
        components={},
        gate=GATE,
        build_seconds=0.5,
    ),
}


def load(directory: Path, kind) -> tuple[Manifest, Any]:
    """What every loader does."""
    manifest = read_manifest(directory, kind)
    verify_files(directory, manifest)
    return manifest, decode_body(manifest, type(BODIES[kind]), directory)


def refusal(directory: Path, kind, code: str) -> str:
    """Load, and return the one line that says why not."""
    with pytest.raises(ArtifactError) as caught:
        load(directory, kind)
    error = caught.value
    assert error.code == code, str(error)
    assert error.exit_code == 3
    assert error.hint
    assert "\n" not in str(error)
    assert str(directory) in error.message
    assert len(error.message) < 400 + 2 * len(str(directory))
    json.dumps(error.to_json(), allow_nan=False).encode()
    str(error).encode()
    return error.message


def edit(directory: Path, kind, **changes: Any) -> None:
    """Change what the manifest says, and its digest with it: a manifest by another program, or by somebody's hand."""
    path = directory / f"{kind}.json"
    data = json.loads(path.read_text())
    data.update(changes)
    content = {"kind": kind, "files": data["files"], "body": data["body"]}
    data["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps(data))
