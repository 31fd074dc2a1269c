"""Compiling what is no sound bundle: every kind of damage is named, and nothing is published."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from compiling import ORT, refused
from handmade import edit_manifest

from distill_rt.core.errors import ArtifactError
from distill_rt.export import compile_bundle


def _truncate(bundle: Path) -> None:
    file = bundle / "onnx/network0.onnx"
    file.write_bytes(file.read_bytes()[:-1])


def _flip(bundle: Path) -> None:
    file = bundle / "golden.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 4
    file.write_bytes(content)


def _link(bundle: Path) -> None:
    file = bundle / "onnx/network0.onnx"
    file.rename(bundle.parent / "elsewhere.onnx")
    file.symlink_to(bundle.parent / "elsewhere.onnx")


def _link_folder(bundle: Path) -> None:
    (bundle / "onnx").rename(bundle.parent / "elsewhere")
    (bundle / "onnx").symlink_to(bundle.parent / "elsewhere")


def _edit(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda bundle: edit_manifest(bundle / "bundle.json", change)


@pytest.mark.parametrize(
    ("damage", "mentions"),
    [
        (lambda bundle: (bundle / "onnx/network0.onnx").unlink(), "network0.onnx is missing"),
        (lambda bundle: (bundle / "golden.safetensors").unlink(), "golden.safetensors is missing"),
        (lambda bundle: (bundle / "bundle.json").unlink(), "neither a student nor a bundle nor an engine"),
        (lambda bundle: (bundle / "bundle.json").write_text("{"), "bundle.json"),
        (_truncate, "bytes, the manifest says"),
        (_flip, "sha256 differs"),
        (_link, "is a link"),
        (_link_folder, "is a link"),
        (_edit(lambda content: content.update(format_version=2)), "format version 2"),
        (_edit(lambda content: content.update(format="other/bundle")), "not written by distill-rt"),
        (_edit(lambda content: content.update(comment="x")), "unknown keys"),
        (_edit(lambda content: content["body"].update(comment="x")), "unknown keys"),
        (_edit(lambda content: content["body"]["spec"].update(comment="x")), "unknown keys"),
        (_edit(lambda content: content["files"][0].update(path="../golden.safetensors")), "plain relative path"),
        (_edit(lambda content: content["body"].update(golden="../golden.safetensors")), "not among the listed files"),
        (_edit(lambda content: content["body"]["components"]["network0"].update(file="/etc/passwd")), "not among"),
        (
            _edit(lambda content: content["body"].update(components={})),
            "components must be network0, as the contract says",
        ),
        (
            _edit(lambda content: content["body"]["components"]["network0"]["inputs"].pop()),
            "must be those of the contract",
        ),
    ],
)
def test_a_damaged_bundle(damage: Callable[[Path], object], mentions: str, own_bundle: Path, tmp_path: Path) -> None:
    damage(own_bundle)
    error = refused(ArtifactError, own_bundle, ORT, tmp_path / "engine")
    assert mentions in error.message
    assert not (tmp_path / "engine").exists()


def test_another_kind_of_artifact(bundle: Path, tmp_path: Path) -> None:
    engine = compile_bundle(bundle, ORT, tmp_path / "engine")
    assert refused(ArtifactError, engine, ORT, tmp_path / "again").code == "artifact-kind"
    assert refused(ArtifactError, tmp_path / "nothing", ORT, tmp_path / "again").code == "artifact-missing"
