"""``--precision int8`` and ``fp8`` from the command line to a real TensorRT-RTX plan.

A worker that plays its part stands in for modelopt.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import fake_modelopt
import onnx
import pytest
from handmade import write_bundle

from distill_rt.backends.base import CompileOptions
from distill_rt.backends.tensorrt.backend import TensorRTRTX
from distill_rt.backends.tensorrt.library import Library
from distill_rt.cli.main import main
from distill_rt.core.artifacts import EngineBody, Precision
from distill_rt.core.errors import TargetError
from distill_rt.core.manifest import decode_body, read_manifest
from distill_rt.export import engine_builder as compiling
from distill_rt.export.bundle import open_bundle
from distill_rt.export.compile import compile_bundle
from distill_rt.export.progress import silent
from distill_rt.export.quantize import calibration
from distill_rt.export.quantize.environment import PYTHON_VARIABLE
from distill_rt.export.quantize.networks import OpenVINOQuantizer, make_quantizer

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    directory = tmp_path / "worker"
    directory.mkdir()
    monkeypatch.setenv(PYTHON_VARIABLE, str(fake_modelopt.install(directory, "works")))
    return directory


@pytest.fixture(autouse=True)
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels around the networks take a while to compile, and know nothing of what is inside of them."""
    monkeypatch.setattr(TensorRTRTX, "add_kernels", lambda self, directory: None)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A bundle whose network has a convolution between the first and the last."""
    return write_bundle(tmp_path / "wide.bundle", edit_model=_add_middle)


def _add_middle(model: onnx.ModelProto) -> None:
    """An identity, so that the golden outputs stay true."""
    import numpy as np

    identity = np.zeros((16, 16, 3, 3), np.float32)
    identity[range(16), range(16), 1, 1] = 1
    graph = model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(identity, "middle.weight"))
    index = next(i for i, node in enumerate(graph.node) if list(node.output) == ["prediction"])
    # The evaluator of the golden outputs holds the node itself: it is replaced, not changed.
    last = onnx.NodeProto()
    last.CopyFrom(graph.node[index])
    last.input[0] = "middle"
    del graph.node[index]
    graph.node.insert(index, last)
    node = onnx.helper.make_node("Conv", ["h3", "middle.weight"], ["middle"], name="middle", pads=[1, 1, 1, 1])
    graph.node.insert(index, node)


def body_of(engine: Path) -> EngineBody:
    return decode_body(read_manifest(engine, "engine"), EngineBody, engine)


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_from_bundle_to_plan(
    rtx: Library, wide: Path, worker: Path, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed: dict[str, onnx.ModelProto] = {}
    original = compiling.typed_graph

    def spy(*arguments: object) -> Path:
        path = original(*arguments)  # type: ignore[arg-type]
        typed[path.name] = onnx.load(str(path))
        return path

    monkeypatch.setattr(compiling, "typed_graph", spy)
    out = tmp_path / "e.engine"
    words = ["--target", "tensorrt-rtx:sm89", "--precision", precision, "--batch", "1,2", "--out", str(out)]
    assert main(["compile", str(wide), *words]) == 0
    body = body_of(out)
    assert (body.precision, body.gate) == (precision, None)
    report = body.options["quantization"]["network0"]
    assert report["quantize"] == 1
    assert report["rows"] == calibration.NUM_ROWS
    assert len(report["calibration"]) == 64
    assert report["versions"]["nvidia-modelopt"] == "0.47.0"
    settings = body.fingerprint_parts["quantization"]
    assert (settings["mode"], settings["modelopt"], settings["rest"]) == (precision, "0.47.0", "fp16")
    # The rest is float16, scales too, and the pair is where the worker put it.
    (model,) = typed.values()
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    assert kinds["q.scale"] == kinds["conv_out.weight"] == onnx.TensorProto.FLOAT16
    assert kinds["q.zero"] == (onnx.TensorProto.INT8 if precision == "int8" else onnx.TensorProto.FLOAT8E4M3FN)
    assert [node.op_type for node in model.graph.node].count("QuantizeLinear") == 1


def test_what_decides_the_engine(
    rtx: Library, wide: Path, worker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def key(precision: str) -> str:
        out = tmp_path / f"{len(list(tmp_path.iterdir()))}.engine"
        return body_of(compile_bundle(wide, "tensorrt-rtx:sm89", out, precision=precision)).fingerprint  # type: ignore[arg-type]

    keys = [key("int8"), key("fp8"), key("fp16")]
    (worker / "called").unlink()
    assert key("int8") == keys[0]
    assert not (worker / "called").exists(), "from the cache: nothing is quantised again"
    monkeypatch.setattr(calibration, "NUM_ROWS", 32)
    assert len({*keys, key("int8")}) == 4
    assert key("fp16") == keys[2], "float engines do not depend on how 8-bit ones are made"


def test_a_failing_worker_leaves_nothing(
    rtx: Library, wide: Path, tmp_path: Path, worker: Path, capsys: Capture
) -> None:
    fake_modelopt.install(worker, "crashes")
    out = tmp_path / "e.engine"
    words = ["--target", "tensorrt-rtx:sm89", "--precision", "int8", "--out", str(out), "--json"]
    assert main(["compile", str(wide), *words]) == 4
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "quantization-failed"
    assert "SIGABRT" in error["message"]
    assert not out.exists()
    assert not list(tmp_path.glob(".*")), "nothing half-written"


def test_a_network_too_small_for_it(rtx: Library, bundle: Path, worker: Path, tmp_path: Path) -> None:
    with pytest.raises(TargetError) as caught:
        compile_bundle(bundle, "tensorrt-rtx:sm89", tmp_path / "e", precision="int8")
    assert caught.value.code == "quantization-empty"
    assert not (worker / "called").exists()


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_other_weights_would_need_other_scales(precision: Precision) -> None:
    with pytest.raises(TargetError) as caught:
        TensorRTRTX("sm89").check(CompileOptions(precision=precision, num_threads=1, refittable=True))
    assert caught.value.code == "refit-unsupported"
    TensorRTRTX("sm89").check(CompileOptions(precision=precision, num_threads=1))


def test_a_whole_trajectory_is_refused(wide: Path, worker: Path) -> None:
    bundle = open_bundle(wide)
    (component,) = bundle.body.components.values()
    body = dataclasses.replace(bundle.body, mode="trajectory", steps=4, components={"trajectory": component})
    with pytest.raises(TargetError) as caught:
        make_quantizer(dataclasses.replace(bundle, body=body), "int8", silent, typed_graphs=True)
    assert "--mode step" in caught.value.hint
    assert isinstance(make_quantizer(bundle, "int8", silent, typed_graphs=False), OpenVINOQuantizer)
    assert make_quantizer(bundle, "fp16", silent, typed_graphs=True) is None
