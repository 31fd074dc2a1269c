"""The TensorRT backends on machines with and without the package and a GPU: what they say, and what an engine depends on."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from handmade import edit_manifest

from distill_rt.backends import base, fingerprint
from distill_rt.backends.base import CompileOptions
from distill_rt.backends.cuda_device import CudaDevice
from distill_rt.backends.engine import open_engine
from distill_rt.backends.registry import Target, backend_for
from distill_rt.backends.tensorrt import backend as backend_module
from distill_rt.backends.tensorrt.backend import TensorRT, TensorRTRTX
from distill_rt.backends.tensorrt.library import Library, load_library
from distill_rt.backends.tensorrt.log import Log
from distill_rt.backends.tensorrt.plan import PlanInfo, open_plan, read_info
from distill_rt.backends.tensorrt.profiles import Profile
from distill_rt.core.artifacts import EngineBody
from distill_rt.core.errors import ArtifactError, DistillError, GateError, TargetError
from distill_rt.core.manifest import decode_body, read_manifest
from distill_rt.export.compile import compile_bundle
from distill_rt.runtime.pipeline import Pipeline

H200 = CudaDevice(index=0, name="NVIDIA H200", capability=90)
L4 = CudaDevice(index=1, name="NVIDIA L4", capability=89)


def gpus(monkeypatch: pytest.MonkeyPatch, *devices: CudaDevice) -> None:
    """A machine with these GPUs."""
    answer = (devices, "" if devices else "no NVIDIA driver")
    monkeypatch.setattr(backend_module, "cuda_devices", lambda: answer)


def body_of(engine: Path) -> EngineBody:
    return decode_body(read_manifest(engine, "engine"), EngineBody, engine)


# -- which machine can do what --------------------------------------------------------------------------------------------


def test_rtx_builds_anywhere_and_runs_on_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = TensorRTRTX("sm86+sm89")
    gpus(monkeypatch)
    assert rtx.cannot_build() is None
    assert rtx.cannot_run() == "this machine has no usable GPU: no NVIDIA driver"
    gpus(monkeypatch, H200)
    assert rtx.cannot_run() == "this machine has NVIDIA H200 (sm90), not sm86 or sm89"
    gpus(monkeypatch, H200, L4)
    assert rtx.cannot_run() is None
    monkeypatch.setattr(backend_module, "installed", lambda name: name != "cuda.core")
    assert rtx.cannot_run() == "package 'cuda-core' is not installed"


def test_tensorrt_builds_where_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = TensorRT("sm90")
    gpus(monkeypatch)
    assert trt.cannot_build() == (
        "TensorRT measures kernels on the GPU that it builds for, and this machine has no usable GPU: no NVIDIA driver"
    )
    gpus(monkeypatch, L4)
    assert "this machine has NVIDIA L4 (sm89), not sm90" in str(trt.cannot_build())
    gpus(monkeypatch, H200)
    assert trt.cannot_build() is None


@pytest.mark.parametrize(("target", "extra"), [("tensorrt:sm90", "tensorrt"), ("tensorrt-rtx:sm89", "tensorrt-rtx")])
def test_a_missing_package_is_named_with_its_extra(
    target: str, extra: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "installed", lambda module: False)
    with pytest.raises(TargetError) as caught:
        compile_bundle(bundle, target, tmp_path / "engine")
    assert caught.value.code == "target-unavailable"
    assert caught.value.hint == f"pip install 'distill-rt[{extra}]'"
    # TensorRT-RTX builds anywhere; who installs TensorRT should know at once what else is missing.
    assert ("measures kernels on the GPU" in caught.value.message) == (target == "tensorrt:sm90")
    assert not (tmp_path / "engine").exists()


def test_with_the_package_but_without_the_gpu_tensorrt_says_why(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend_module, "installed", lambda module: True)
    gpus(monkeypatch)
    with pytest.raises(TargetError) as caught:
        compile_bundle(bundle, "tensorrt:sm90", tmp_path / "engine")
    assert caught.value.code == "build-needs-target"
    assert "measures kernels on the GPU" in caught.value.message


# -- the package ----------------------------------------------------------------------------------------------------------


def fake_package(monkeypatch: pytest.MonkeyPatch, name: str, version: str) -> None:
    module = ModuleType(name)
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("version", ["10.8.0.43", "9.3.0", "8.6.1.post1"])
def test_an_old_release_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    fake_package(monkeypatch, "tensorrt", version)
    with pytest.raises(TargetError) as caught:
        load_library("tensorrt")
    assert caught.value.code == "library-too-old"
    assert f"TensorRT {version} is too old: 10.9" in caught.value.message


@pytest.mark.parametrize("version", ["10.9.0.34", "10.16.1.11", "11.4.0.106"])
def test_a_served_release_is_taken(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    fake_package(monkeypatch, "tensorrt", version)
    library = load_library("tensorrt")
    assert (library.title, library.compiler) == (f"TensorRT {version}", f"tensorrt {version}")


def test_both_packages_in_one_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_package(monkeypatch, "tensorrt", "11.4.0.106")
    fake_package(monkeypatch, "tensorrt_rtx", "1.7.1.116")
    for flavour in ("tensorrt", "tensorrt_rtx"):
        with pytest.raises(TargetError) as caught:
            load_library(flavour)
        assert caught.value.code == "library-conflict"


def test_the_log_gives_the_reason_and_leaves_out_the_missing_gpu(rtx: Library) -> None:
    log = Log(rtx)
    severity = rtx.trt.ILogger
    log.logger.log(severity.WARNING, "careful")
    assert log.errors() == []
    log.logger.log(
        severity.ERROR, "IBuilder::build: Error Code 4: API Usage Error (too many cooks. In f at /src/a.cpp:3)"
    )
    log.logger.log(severity.ERROR, "Error Code 1: Cuda Runtime (cudaError 35: CUDA driver version is insufficient)")
    error = log.refuse("does nothing", hint="wait")
    assert error.message == f"{rtx.title} does nothing: too many cooks."
    assert len(error.details["log"]) == 1


def test_a_missing_gpu_is_the_reason_where_it_is_the_only_one(rtx: Library) -> None:
    log = Log(rtx)
    log.logger.log(rtx.trt.ILogger.INTERNAL_ERROR, "no device (cudaError 35: CUDA driver version is insufficient)")
    assert "cudaError 35" in log.refuse("does nothing", hint="").message


# -- real engines ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compiled(rtx: Library, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits network for two GPUs and two batches; not to be changed."""
    out = tmp_path_factory.mktemp("engine") / "digits.engine"
    return compile_bundle(digits, "tensorrt-rtx:sm86+sm89", out, batches=(1, 4), use_cache=False)


@pytest.fixture
def own(compiled: Path, tmp_path: Path) -> Path:
    """One that the test may damage."""
    return Path(shutil.copytree(compiled, tmp_path / "own.engine"))


def test_an_engine_for_another_machine(compiled: Path, digits: Path, rtx: Library) -> None:
    body = body_of(compiled)
    assert (body.target, body.precision, body.batches) == ("tensorrt-rtx:sm86+sm89", "fp16", (1, 4))
    assert body.gate is None
    assert (compiled / str(body.golden)).read_bytes() == (digits / "golden.safetensors").read_bytes()
    first, second = body.components["network0"]
    assert first.files == second.files == ("network0.plan", "network0.plan.json"), "one plan serves both batches"
    info = read_info(compiled, first.files)
    assert info.library == rtx.compiler
    assert info.capabilities == (86, 89)
    assert (info.num_attentions, info.num_fused_attentions) == (1, 1)
    # Guidance takes two evaluations per image.
    assert info.profiles == (
        Profile.point({"B": 2}),
        Profile.point({"B": 8}),
        Profile(low={"B": 2}, best={"B": 2}, high={"B": 8}),
    )
    assert sorted(path.name for path in compiled.iterdir()) == [
        "engine.json",
        "golden.safetensors",
        "kernels",
        "network0.plan",
        "network0.plan.json",
    ]


def test_the_building_machine_leaves_no_trace_in_the_fingerprint(
    rtx: Library, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = body_of(compiled).fingerprint_parts
    assert set(parts["machine"]) == {"compiler", "settings", "kernels"}
    backend = backend_for(Target.parse("tensorrt-rtx:sm86+sm89"))
    gpus(monkeypatch, L4)
    for num_threads in (1, 7):
        options = CompileOptions(precision="fp16", num_threads=num_threads)
        assert backend.fingerprint_parts(options) == parts["machine"]


@pytest.mark.parametrize(("target", "precision"), [("tensorrt-rtx:sm89", "fp16"), ("tensorrt-rtx:sm86+sm89", "bf16")])
def test_target_and_precision_decide_the_engine(compiled: Path, target: str, precision: Any) -> None:
    backend = backend_for(Target.parse(target))
    here = backend.fingerprint_parts(CompileOptions(precision=precision, num_threads=1))
    assert here != body_of(compiled).fingerprint_parts["machine"]


def refused(engine: Path, family: type[DistillError]) -> DistillError:
    with pytest.raises(family) as caught:
        Pipeline.load(engine)
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_without_a_gpu_it_is_refused_in_one_line(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch)
    error = refused(own, TargetError)
    assert error.code == "target-unavailable"
    assert "this machine has no usable GPU" in error.message


def test_another_gpu_is_refused(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, H200)
    assert "this machine has NVIDIA H200 (sm90), not sm86 or sm89" in refused(own, TargetError).message


def test_on_its_target_nothing_generates_before_the_gate(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRT, "cannot_run", lambda self: None)
    error = refused(own, GateError)
    assert error.code == "gate-not-run"
    assert error.hint == f"run its gate here, once: distill-rt verify {own} --gate"
    opened = open_engine(own, ungated=True)
    assert opened.body.gate is None


def test_a_truncated_plan_is_refused(own: Path) -> None:
    plan = own / "network0.plan"
    plan.write_bytes(plan.read_bytes()[:1000])
    assert "network0.plan has 1000 bytes" in refused(own, ArtifactError).message


def test_an_engine_of_another_release_is_refused(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TensorRT, "cannot_run", lambda self: None)

    def change(content: dict[str, Any]) -> None:
        body = content["body"]
        body["fingerprint_parts"]["machine"]["compiler"] = "tensorrt_rtx 1.5.0.1"
        body["fingerprint"] = fingerprint.fingerprint(body["fingerprint_parts"])

    edit_manifest(own / "engine.json", change)
    error = refused(own, TargetError)
    assert error.code == "engine-stale"
    assert "compiled with tensorrt_rtx 1.5.0.1, this is tensorrt_rtx" in error.message


def test_an_engine_without_gate_and_golden_outputs_is_refused(own: Path) -> None:
    edit_manifest(own / "engine.json", lambda content: content["body"].update(golden=None))
    assert "its gate has not run, and there are no golden outputs" in refused(own, ArtifactError).message


def test_load_says_what_is_missing(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the pipeline, where nobody has asked whether this machine can run it."""
    gpus(monkeypatch)
    body, backend = body_of(own), TensorRTRTX("sm86+sm89")
    files = body.components["network0"][0].files
    inputs, outputs = body.spec.network_inputs(), body.spec.network_outputs()
    with pytest.raises(TargetError) as caught:
        backend.load(own, files, inputs, outputs, 2, CompileOptions(precision="fp16", num_threads=1))
    assert "no usable GPU" in caught.value.message


# -- opening plans, as far as it goes without a GPU -----------------------------------------------------------------------


@pytest.mark.parametrize("damage", [lambda plan: b"", lambda plan: plan[:30], lambda plan: b"x" + plan[1:]])
def test_what_is_no_plan_is_told_from_a_missing_gpu(rtx: Library, own: Path, damage: Any) -> None:
    body = body_of(own)
    path = own / "network0.plan"
    path.write_bytes(damage(path.read_bytes()))
    info = read_info(own, ("network0.plan",))
    with pytest.raises(TargetError) as caught:
        open_plan(rtx, path, info, body.spec.network_inputs(), body.spec.network_outputs())
    assert "it is not a plan, or was cut short" in caught.value.message


def test_a_plan_of_another_release_names_both(rtx: Library, own: Path) -> None:
    info = own / "network0.plan.json"
    info.write_text(info.read_text().replace(rtx.compiler, "tensorrt_rtx 1.5.0.1"))
    with pytest.raises(TargetError) as caught:
        TensorRTRTX("sm89").open_plan(own, ("network0.plan",), (), ())
    assert caught.value.message.endswith(
        f"was built by tensorrt_rtx 1.5.0.1, this is {rtx.compiler}; plans belong to one release"
    )
    assert "pip install 'tensorrt_rtx==1.5.0.1'" in caught.value.hint


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"library": 1}'])
def test_a_plan_without_its_description(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "a.plan.json").write_text(content)
    with pytest.raises(ArtifactError) as caught:
        read_info(tmp_path, ("a.plan",))
    assert "a.plan.json does not describe a plan" in caught.value.message


def test_the_description_round_trips(compiled: Path) -> None:
    info = read_info(compiled, ("network0.plan",))
    assert isinstance(info, PlanInfo)
    assert json.loads((compiled / "network0.plan.json").read_text())["profiles"][0]["low"] == {"B": 2}
    assert base.network_batch(body_of(compiled).spec, 1) == 2
