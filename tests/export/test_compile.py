"""Compiling: what is published, what is refused, and that a refusal leaves nothing behind."""

from __future__ import annotations

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from compiling import ORT, OV, Stages, cached, entries, needs_bf16, refused
from handmade import make_spec, write_bundle
from onnx import numpy_helper

from distill_rt.backends.base import Program
from distill_rt.backends.engine import open_engine
from distill_rt.backends.onnxruntime import OnnxRuntime
from distill_rt.core.errors import DistillError, GateError, ResourceError, TargetError, UsageError
from distill_rt.core.manifest import read_manifest
from distill_rt.export import compile_bundle
from distill_rt.export.golden import Golden
from distill_rt.export.trajectory import run_plan

# -- what is published ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [ORT, OV])
@pytest.mark.parametrize("mode", ["embedded", "cfg", "none"])
def test_an_engine_holds_everything(target: str, mode: Any, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", mode, num_networks=2)
    out = compile_bundle(bundle, target, tmp_path / "engine", batches=(4, 1), num_threads=1)
    shutil.rmtree(bundle)  # an engine is self-contained
    engine = open_engine(out)
    body = engine.body
    assert body.spec == make_spec(mode, 2)
    assert body.target == target
    assert body.precision == "fp32"
    assert body.batches == (1, 4)
    assert set(body.components) == {"network0", "network1"}
    assert set(body.gate.trajectories) == {
        f"steps={n},guidance={w}" for n in (1, 4) for w in ((1,) if mode == "none" else (1, 2, 4))
    }
    assert body.build_seconds > 0
    assert body.options["num_threads"] == 1
    assert all(path.is_file() and not path.is_symlink() for path in out.iterdir())
    listed = {entry.path for entry in read_manifest(out, "engine").files}
    assert listed | {"engine.json"} == entries(out)
    for name in body.components:
        for num_images in body.batches:
            program = engine.load(name, num_images)
            assert len(program.outputs["prediction"]) == num_images * (2 if mode == "cfg" else 1)


def test_the_default_name_and_target(bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(bundle, tmp_path / "digits.bundle"))
    assert compile_bundle(own) == tmp_path / "digits.engine"
    assert open_engine(tmp_path / "digits.engine").body.target == OV


@needs_bf16
def test_bfloat16(bundle: Path, tmp_path: Path) -> None:
    body = open_engine(compile_bundle(bundle, OV, tmp_path / "engine", precision="bf16")).body
    assert body.precision == "bf16"
    assert 1e-4 < body.gate.components["network0"].relative_l2 < 0.05


def test_an_image_has_the_same_bits_in_every_batch(bundle: Path, tmp_path: Path) -> None:
    """The promise of onnxruntime:cpu: image k of a request for many is the image requested alone."""
    out = compile_bundle(bundle, ORT, tmp_path / "engine", batches=(1, 4, 16), num_threads=2)
    engine = open_engine(out)
    assert engine.body.options["bit_exact_batches"] is True
    assert engine.body.options["left_out_batches"] == [b for b in (4, 16) if b not in engine.body.batches]

    def images(num_images: int, seeds: list[int], labels: list[int]) -> Any:
        program = engine.load("network0", num_images)

        def evaluate(net_id: int, inputs: Any) -> Any:
            for name, buffer in program.inputs.items():
                buffer[:] = inputs[name]
            program.run()
            return program.outputs["prediction"].copy()

        return run_plan(engine.body.spec, evaluate, steps=4, guidance=2.0, seeds=seeds, labels=labels)

    labels = [k % 3 for k in range(16)]
    alone = [images(1, [100 + k], [labels[k]])[0] for k in range(16)]
    for num_images in engine.body.batches:
        for start in range(0, 16, num_images):
            members = list(range(start, start + num_images))
            together = images(num_images, [100 + k for k in members], [labels[k] for k in members])
            for k in members:
                assert together[k - start].tobytes() == alone[k].tobytes()


def test_a_batch_with_other_bits_is_left_out(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exact_up_to_2(reference: Program, program: Program, inputs: Any) -> bool:
        return len(program.outputs["prediction"]) <= 2

    monkeypatch.setattr("distill_rt.export.engine_builder.same_bits", exact_up_to_2)
    stages = Stages()
    out = compile_bundle(bundle, ORT, tmp_path / "engine", batches=(2, 4), progress=stages)
    body = open_engine(out).body
    assert body.batches == (1, 2)  # 1 is the measure of the others, so it is always there
    assert body.options["left_out_batches"] == [4]
    assert not list(out.glob("*.b4.*"))
    assert any("batch 4 is left out" in stage for stage in stages.names)


def test_openvino_keeps_every_batch(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_rt.export.engine_builder.same_bits", lambda *args: False)
    body = open_engine(compile_bundle(bundle, OV, tmp_path / "engine", batches=(2, 4))).body
    assert body.batches == (2, 4)
    assert body.options["bit_exact_batches"] is False


# -- the gate -------------------------------------------------------------------------------------------------------------


def _wrong_weight(model: onnx.ModelProto) -> None:
    (weight,) = (item for item in model.graph.initializer if item.name == "conv_out.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * np.float32(1.01), weight.name))


def _wrong_trajectory(golden: Golden) -> Golden:
    first, *rest = golden.trajectories
    return dataclasses.replace(
        golden, trajectories=(dataclasses.replace(first, images=first.images + np.float32(0.01)), *rest)
    )


def _overflow(model: onnx.ModelProto) -> None:
    (weight,) = (item for item in model.graph.initializer if item.name == "conv_in.bias")
    weight.CopyFrom(numpy_helper.from_array(np.full(16, np.inf, np.float32), weight.name))


@pytest.mark.parametrize("target", [ORT, OV])
@pytest.mark.parametrize(
    ("edits", "code", "mentions"),
    [
        ({"edit_model": _wrong_weight}, "gate-failed", "component network0 at batch 1 is too far"),
        ({"edit_golden": _wrong_trajectory}, "gate-failed", "trajectory steps=1,guidance=1 is too far"),
        ({"edit_model": _overflow}, "gate-not-finite", "NaN or infinite"),
    ],
    ids=["component", "trajectory", "overflow"],
)
def test_a_failed_gate_publishes_nothing(
    target: str, edits: dict[str, Any], code: str, mentions: str, tmp_path: Path, cache_dir: Path
) -> None:
    bundle = write_bundle(tmp_path / "bundle", **edits)
    error = refused(GateError, bundle, target, tmp_path / "engine")
    assert (error.code, error.exit_code) == (code, 6)
    assert mentions in error.message
    assert entries(tmp_path) == {"bundle", "cache"}
    assert not cached(cache_dir)


# -- arguments ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "family", "code"),
    [
        ({"target": "abacus:beads"}, UsageError, "target-unknown"),
        ({"target": ORT, "precision": "bf16"}, TargetError, "precision-unsupported"),
        ({"target": ORT, "precision": "fp16"}, TargetError, "precision-unsupported"),
        ({"target": OV, "precision": "fp16"}, TargetError, "precision-unsupported"),
        ({"target": ORT, "batches": (0,)}, UsageError, "batch-out-of-range"),
        ({"target": ORT, "batches": (-1,)}, UsageError, "batch-out-of-range"),
        ({"target": ORT, "batches": (1.5,)}, UsageError, "batch-out-of-range"),
        ({"target": ORT, "batches": (10**9,)}, UsageError, "batch-out-of-range"),
        ({"target": ORT, "batches": ()}, UsageError, "batch-missing"),
        ({"target": ORT, "num_threads": 0}, UsageError, "threads-out-of-range"),
    ],
)
def test_arguments(
    kwargs: dict[str, Any], family: type[DistillError], code: str, bundle: Path, tmp_path: Path, cache_dir: Path
) -> None:
    assert refused(family, bundle, out=tmp_path / "engine", **kwargs).code == code
    assert not (tmp_path / "engine").exists()
    assert not cached(cache_dir)


# -- where it goes --------------------------------------------------------------------------------------------------------


def test_existing_output_needs_force(bundle: Path, tmp_path: Path) -> None:
    out = compile_bundle(bundle, ORT, tmp_path / "engine")
    stages = Stages()
    assert refused(UsageError, bundle, ORT, out, progress=stages).code == "output-exists"
    assert not stages.names  # refused before any work
    compile_bundle(bundle, OV, out, force=True)
    assert open_engine(out).body.target == OV
    (tmp_path / "file").write_text("mine")
    assert refused(UsageError, bundle, ORT, tmp_path / "file", force=True).code == "output-not-a-directory"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_place_that_cannot_be_written(use_cache: bool, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refused(ResourceError, bundle, ORT, tmp_path / "file" / "engine", use_cache=use_cache)
    assert (error.code, error.exit_code) == ("not-writable", 5)


def test_a_cache_that_cannot_be_written(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DISTILL_RT_CACHE", str(tmp_path / "file" / "cache"))
    assert "--no-cache" in refused(ResourceError, bundle, ORT, tmp_path / "engine").hint
    compile_bundle(bundle, ORT, tmp_path / "engine", use_cache=False)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_full_disk(
    use_cache: bool, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_dir: Path
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(OnnxRuntime, "compile", full)
    error = refused(ResourceError, bundle, ORT, tmp_path / "engine", use_cache=use_cache)
    assert (error.code, error.exit_code) == ("disk-full", 5)
    assert not (tmp_path / "engine").exists()
    assert not [path for path in tmp_path.rglob("*") if "partial" in path.name]
    assert not cached(cache_dir)
