"""Opening an engine: what is damaged, foreign or stale is refused in one line with the way out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import edit_manifest

from distill_rt.backends import fingerprint, processor
from distill_rt.backends.engine import open_engine
from distill_rt.backends.onnxruntime import OnnxRuntime
from distill_rt.core.errors import ArtifactError, DistillError, TargetError


def refused(engine: Path, family: type[DistillError]) -> DistillError:
    with pytest.raises(family) as caught:
        open_engine(engine)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def change_parts(body: dict[str, Any], *path: str, value: Any) -> None:
    """Change a recorded fingerprint part as an engine built elsewhere would have it, hash included."""
    part = body["fingerprint_parts"]
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    body["fingerprint"] = fingerprint.fingerprint(body["fingerprint_parts"])


def test_an_engine_opens_and_runs(engine: Path) -> None:
    opened = open_engine(engine)
    assert opened.body.batches == (1, 3)
    assert opened.options.num_threads == 1
    for num_images in opened.body.batches:
        program = opened.load("network0", num_images)
        assert program.outputs["prediction"].shape == (num_images, 1, 4, 4)
        program.run()
        assert np.isfinite(program.outputs["prediction"]).all()


def test_an_engine_can_be_moved(engine: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "engine"
    shutil.copytree(engine, moved)
    shutil.rmtree(engine)
    open_engine(moved).load("network0", 3).run()


# -- damaged ------------------------------------------------------------------------------------------------------------


def test_missing_directory(tmp_path: Path) -> None:
    assert refused(tmp_path / "nothing", ArtifactError).code == "artifact-missing"


def test_directory_of_something_else(bundle: Path) -> None:
    assert refused(bundle, ArtifactError).code == "artifact-kind"


@pytest.mark.parametrize("name", ["network0.b1.onnx", "network0.b3.weights"])
def test_missing_file(engine: Path, name: str) -> None:
    (engine / name).unlink()
    assert f"{name} is missing" in refused(engine, ArtifactError).message


def test_truncated_file(engine: Path) -> None:
    file = engine / "network0.b1.onnx"
    file.write_bytes(file.read_bytes()[:-10])
    assert "bytes, the manifest says" in refused(engine, ArtifactError).message


def test_flipped_bit(engine: Path) -> None:
    file = engine / "network0.b1.weights"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert "sha256 differs" in refused(engine, ArtifactError).message


def test_link_in_place_of_a_file(engine: Path, tmp_path: Path) -> None:
    file = engine / "network0.b1.onnx"
    shutil.move(file, tmp_path / "outside")
    file.symlink_to(tmp_path / "outside")
    assert "is a link" in refused(engine, ArtifactError).message


@pytest.mark.parametrize("path", ["../network0.b1.onnx", "/etc/passwd", "a/../network0.b1.onnx", "network0.b1.onnx/"])
def test_path_outside_of_the_directory(engine: Path, path: str) -> None:
    edit_manifest(engine / "engine.json", lambda content: content["files"][0].update(path=path))
    assert "not a plain relative path" in refused(engine, ArtifactError).message


@pytest.mark.parametrize(
    ("change", "mentions"),
    [
        (lambda content: content.update(format_version=2), "format version 2"),
        (lambda content: content.update(format="somebody/else"), "not written by distill-rt"),
        (lambda content: content.update(extra=1), "unknown keys"),
        (lambda content: content["body"].update(extra=1), "unknown keys"),
        (lambda content: content["body"].pop("gate"), "lacks gate"),
        (lambda content: content["body"]["components"]["network0"][0].update(speed=1), "unknown keys"),
        (lambda content: content["body"].update(batches=["1"]), "must be an integer"),
        (lambda content: content["body"].update(batches=[1, 2]), "every component must be compiled"),
        (lambda content: content["body"].update(batches=[]), "every component must be compiled"),
        (lambda content: content["body"].update(components={}), "components must be network0, as the contract says"),
        (
            lambda content: content["body"]["components"]["network0"][0].update(files=["../../x"]),
            "name files that are not listed",
        ),
        (
            lambda content: content["body"]["options"].update(num_threads="2"),
            "num_threads must be an integer of 1 to 1024",
        ),
        (
            lambda content: content["body"]["options"].update(num_threads=1025),
            "num_threads must be an integer of 1 to 1024",
        ),
        (lambda content: content["body"]["options"].pop("num_threads"), "num_threads must be an integer of 1 to 1024"),
    ],
)
def test_edited_manifest(engine: Path, change: Callable[[dict[str, Any]], None], mentions: str) -> None:
    edit_manifest(engine / "engine.json", change)
    assert mentions in refused(engine, ArtifactError).message


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": NaN}', b"\xff\xfe", b"[" * 100_000])
def test_manifest_that_is_none(engine: Path, content: bytes) -> None:
    (engine / "engine.json").write_bytes(content)
    assert refused(engine, ArtifactError).exit_code == 3


# -- stale or foreign -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "value", "mentions"),
    [
        (("machine", "compiler"), "onnxruntime 1.2.3", "it was compiled with onnxruntime 1.2.3, this is onnxruntime"),
        (("machine", "processor", "architecture"), "riscv64", "it was compiled for architecture riscv64, this is"),
        (
            ("machine", "processor", "instruction_sets"),
            ["amx_fp16", "asimd", "avx2"],
            "it was compiled for a processor with amx_fp16, asimd",
        ),
        (("machine", "settings", "execution_mode"), "parallel", "settings.execution_mode parallel"),
        (("recipe",), 0, "recipe 0"),
        (("rewrites",), [], "rewrites []"),
    ],
)
def test_an_engine_from_elsewhere_names_what_differs(
    engine: Path, path: tuple[str, ...], value: Any, mentions: str
) -> None:
    edit_manifest(engine / "engine.json", lambda content: change_parts(content["body"], *path, value=value))
    error = refused(engine, TargetError)
    assert error.code == "engine-stale"
    assert mentions in error.message
    threads = "" if processor.available_cores() == 1 else "--threads 1 "
    assert f"BUNDLE --target onnxruntime:cpu --batch 1,3 {threads}--out {engine} --force" in error.hint


def test_a_processor_with_more_instructions_is_another(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = processor.instruction_sets()
    monkeypatch.setattr(processor, "instruction_sets", lambda: here | {"amx_fp16"})
    assert "a processor without amx_fp16, which this one has" in refused(engine, TargetError).message


def test_a_new_version_of_the_runtime_refuses(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    was = onnxruntime.__version__
    monkeypatch.setattr(onnxruntime, "__version__", "99.0")
    assert f"compiled with onnxruntime {was}, this is onnxruntime 99.0" in refused(engine, TargetError).message


@pytest.mark.parametrize("field", ["bundle_digest", "precision", "target", "fingerprint"])
def test_parts_that_do_not_belong_together(engine: Path, field: str) -> None:
    values = {"bundle_digest": "f" * 64, "precision": "bf16", "target": "openvino:cpu", "fingerprint": "f" * 64}
    edit_manifest(engine / "engine.json", lambda content: content["body"].update({field: values[field]}))
    assert "does not belong to what it lists" in refused(engine, ArtifactError).message


def test_a_target_of_a_later_version(engine: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["body"]["target"] = "abacus:beads"
        change_parts(content["body"], "target", value="abacus:beads")

    edit_manifest(engine / "engine.json", change)
    assert "compiled for abacus:beads, which this distill-rt does not know" in refused(engine, TargetError).message


def test_the_package_is_missing(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OnnxRuntime, "unavailable", lambda self: "package 'onnxruntime' is not installed")
    assert refused(engine, TargetError).hint == "pip install 'distill-rt[onnxruntime]'"


def test_threads_are_part_of_the_engine(engine: Path) -> None:
    edit_manifest(engine / "engine.json", lambda content: content["body"]["options"].update(num_threads=2))
    error = refused(engine, TargetError)
    assert "num_threads" in error.message
    assert json.loads((engine / "engine.json").read_text())["body"]["options"]["num_threads"] == 2
