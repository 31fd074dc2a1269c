"""``inductor:cpu`` as a user meets it: export, compile, gate, generate; and everything that is refused."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from handmade import make_model, make_spec, write_bundle
from onnx import helper
from tiny_networks import make_contract, make_network

import distill_rt as drt
from distill_rt.backends import processor
from distill_rt.backends.base import CompileOptions
from distill_rt.backends.engine import open_engine
from distill_rt.backends.inductor import settings
from distill_rt.backends.inductor.backend import BF16_INSTRUCTION_SETS, InductorCpu
from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.errors import ArtifactError, TargetError
from distill_rt.export import compile_bundle, export_student
from distill_rt.models import save_student

HAS_BF16 = bool(BF16_INSTRUCTION_SETS & processor.instruction_sets())


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small UNet with labels and guidance as an input, exported from torch."""
    directory = tmp_path_factory.mktemp("student")
    spec = make_contract("unet2d", guidance=True)
    save_student(directory / "tiny", spec, [make_network(spec)])
    return export_student(directory / "tiny", directory / "tiny.bundle")


@pytest.fixture(scope="module")
def engine(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compiled with the C++ compiler of this machine: some ten seconds. Read only."""
    out = tmp_path_factory.mktemp("inductor") / "tiny.engine"
    return compile_bundle(bundle, "inductor:cpu", out, batches=(2,), num_threads=1, use_cache=False)


def test_the_whole_walk(bundle: Path, engine: Path, tmp_path: Path) -> None:
    other = compile_bundle(
        bundle, "onnxruntime:cpu", tmp_path / "ort.engine", batches=(2,), num_threads=1, use_cache=False
    )
    body = open_engine(engine).body
    assert body.gate is not None
    assert {path.name for path in engine.iterdir()} == {"engine.json", "network0.b2.pt2"}
    with drt.load(engine) as mine, drt.load(other) as theirs:
        for steps in (1, 4):
            request = {"labels": [1, 2, 3], "seed": 5, "steps": steps, "guidance": 3.0}
            got, want = (pipe.generate(**request).images.astype(int) for pipe in (mine, theirs))
            assert np.ptp(want) > 100
            assert np.abs(got - want).max() <= 1  # a pixel on the edge between two values


def test_buffers_are_ours_and_stay(engine: Path) -> None:
    program = open_engine(engine).load("network0", 2)
    before = {name: array.ctypes.data for name, array in program.outputs.items()}
    answers = []
    for seed in (0, 1, 0):
        rng = np.random.default_rng(seed)
        program.inputs["sample"][:] = rng.standard_normal(program.inputs["sample"].shape)
        program.inputs["time"][:] = 500.0
        program.run()
        answers.append(program.outputs["prediction"].copy())
    assert np.array_equal(answers[0], answers[2])  # nothing is left of the call between
    assert not np.array_equal(answers[0], answers[1])
    assert {name: array.ctypes.data for name, array in program.outputs.items()} == before


@pytest.mark.skipif(not HAS_BF16, reason="no bfloat16 instructions here")
def test_bfloat16_passes_its_gate(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "handmade.bundle")
    out = compile_bundle(bundle, "inductor:cpu", tmp_path / "engine", precision="bf16", num_threads=1, use_cache=False)
    gate = open_engine(out).body.gate
    assert gate is not None
    assert 1e-4 < gate.components["network0"].relative_l2 < 2e-2  # it did compute in bfloat16


# -- refusals ---------------------------------------------------------------------------------------------------------------


def refused(bundle: Path, out: Path, precision: Precision | None = None) -> TargetError:
    with pytest.raises(TargetError) as caught:
        compile_bundle(bundle, "inductor:cpu", out, precision=precision, use_cache=False)
    assert "\n" not in caught.value.message
    assert not out.exists()
    return caught.value


def test_without_a_compiler(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    error = refused(bundle, tmp_path / "engine")
    assert error.code == "build-needs-target"
    assert "no compiler no-such-compiler" in error.message


def test_half_precision_is_for_gpus(bundle: Path, tmp_path: Path) -> None:
    error = refused(bundle, tmp_path / "engine", "fp16")
    assert (error.code, error.details) == ("precision-unsupported", {"precisions": ["fp32", "bf16"]})


def test_bfloat16_needs_its_instructions(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset({"avx2", "fma"}))
    assert "no bfloat16 instructions" in refused(bundle, tmp_path / "engine", "bf16").message


def test_an_operator_that_nobody_knows(tmp_path: Path) -> None:
    def edit(model: onnx.ModelProto) -> None:
        nodes = copy.deepcopy(list(model.graph.node))  # the golden outputs are made with the others
        nodes[-1].output[0] = "almost"
        del model.graph.node[:]
        model.graph.node.extend([*nodes, helper.make_node("Hardmax", ["almost"], ["prediction"], name="odd_one")])

    error = refused(write_bundle(tmp_path / "odd.bundle", edit_model=edit), tmp_path / "engine")
    assert error.code == "operator-unsupported"
    assert error.details == {"operator": "Hardmax", "node": "odd_one"}
    assert sorted(os.listdir(tmp_path)) == ["odd.bundle"]


def test_what_torch_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "COMMON", {**settings.COMMON, "no_such_setting": True})
    spec = make_spec()
    onnx.save(make_model(spec), str(tmp_path / "network.onnx"))
    component = Component(
        file="network.onnx", inputs=spec.network_inputs(), outputs=spec.network_outputs(), opset=21, initializers={}
    )
    out = tmp_path / "out"
    out.mkdir()
    options = CompileOptions(precision="fp32", num_threads=1)
    with pytest.raises(TargetError, match=r"torch cannot compile network.onnx: .*no_such_setting") as caught:
        InductorCpu().compile(tmp_path / "network.onnx", component, [1], out, "network0", options)
    assert "\n" not in caught.value.message
    assert not os.listdir(out)


def test_a_truncated_package(engine: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(engine, tmp_path / "copy")
    file = copy / "network0.b2.pt2"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ArtifactError):  # by its size, before it is opened
        open_engine(copy)
    body = open_engine(engine).body
    options = CompileOptions(precision="fp32", num_threads=1)
    with pytest.raises(TargetError, match=r"torch cannot load network0\.b2\.pt2") as caught:
        InductorCpu().load(copy, [file.name], body.spec.network_inputs(), body.spec.network_outputs(), 2, options)
    assert "\n" not in caught.value.message


def test_another_torch_or_processor_is_stale(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    with monkeypatch.context() as patch:
        patch.setattr(torch, "__version__", "2.99.0")
        with pytest.raises(TargetError, match=r"compiled with torch .*, this is torch 2.99.0") as caught:
            open_engine(engine)
        assert caught.value.code == "engine-stale"
    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset({"avx2"}))
    with pytest.raises(TargetError, match="which this one lacks"):
        open_engine(engine)


# -- the machine ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "sets", "level"),
    [
        ("x86_64", {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma", "f16c"}, "x86-64-v4"),
        ("x86_64", {"avx512f", "avx2", "fma", "f16c"}, "x86-64-v3"),
        ("x86_64", {"sse4_1", "sse4_2", "avx"}, "x86-64-v2"),
        ("aarch64", {"asimd"}, None),
    ],
)
def test_code_is_for_the_listed_instruction_sets(
    machine: str, sets: set[str], level: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings.platform, "machine", lambda: machine)
    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset(sets))
    assert settings.cpu_settings(2)["cpp.march"] == level


def test_asking_imports_no_torch() -> None:
    """`doctor`, `compile` for another target and the list of targets must not wait for torch."""
    program = (
        "import sys, json\n"
        "from distill_rt.backends.registry import ON_REQUEST, Target, backend_for\n"
        "for name in ON_REQUEST:\n"
        "    backend = backend_for(Target.parse(name))\n"
        "    backend.unavailable(), backend.cannot_build(), backend.cannot_run()\n"
        "print(json.dumps('torch' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) is False
