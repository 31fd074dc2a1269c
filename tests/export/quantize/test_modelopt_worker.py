"""The worker's own checks without modelopt, and a real run where an environment with modelopt exists."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from distill_rt.core.artifacts import Component
from distill_rt.export.quantize import modelopt_worker as worker
from distill_rt.export.quantize.environment import PYTHON_VARIABLE, SETUP_COMMAND, find_python
from distill_rt.export.quantize.modelopt import Mode, quantize_graph
from distill_rt.export.quantize.modelopt_worker import JobError

Network = tuple[Path, Component]
JOB = {
    "graph": "g.onnx",
    "output": "q.onnx",
    "mode": "int8",
    "method": "max",
    "calibration": "c.npz",
    "exclude": ["a"],
    "modelopt": "0.47.0",
}
SOURCE = Path(worker.__file__)


def write_job(path: Path, **changes: Any) -> Path:
    path.write_text(json.dumps(JOB | changes))
    return path


def refused(call: Any) -> JobError:
    with pytest.raises(JobError) as caught:
        call()
    return caught.value


def test_it_imports_nothing_of_ours() -> None:
    """Its Python has no distill_rt, and other releases of everything."""
    imported = set()
    for node in ast.walk(ast.parse(SOURCE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).partition(".")[0])
    third_party = {name for name in imported if name not in sys.stdlib_module_names}
    assert third_party == {"modelopt", "numpy", "onnx", "onnxruntime"}


def test_a_job_is_read(tmp_path: Path) -> None:
    assert worker.read_job(write_job(tmp_path / "job")) == JOB


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mode": "int4"}, "mode must be one of int8, fp8, got 'int4'"),
        ({"method": "percentile"}, "method must be one of max, entropy"),
        ({"exclude": "a"}, "exclude must be of type list"),
        ({"more": 1}, "a job has the fields graph, output"),
    ],
)
def test_a_wrong_job(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    error = refused(lambda: worker.read_job(write_job(tmp_path / "job", **changes)))
    assert error.kind == "job"
    assert says in str(error)


def test_no_job(tmp_path: Path) -> None:
    (tmp_path / "job").write_text("{")
    assert "is not a job" in str(refused(lambda: worker.read_job(tmp_path / "job")))
    assert "is not a job" in str(refused(lambda: worker.read_job(tmp_path / "nothing")))


def test_versions() -> None:
    worker.check_version("0.47.3", "0.47.0")
    error = refused(lambda: worker.check_version("0.33.0", "0.47.0"))
    assert (error.kind, str(error)) == ("versions", "nvidia-modelopt 0.47.0 is needed, this environment has 0.33.0")


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": (4, 3, 8)}, "the graph takes x, t; the data has x"),
        ({"x": (4, 3, 8), "t": (4,), "w": (4,)}, "the data has x, t, w"),
        ({"x": (4, 2, 8), "t": (4,)}, "input x is any x 3 x any; the data is 4 x 2 x 8"),
        ({"x": (4, 3, 8), "t": (4, 1)}, "input t is any; the data is 4 x 1"),
        ({"x": (4, 3, 8), "t": (5,)}, "the same number of rows, at least 1; got [4, 5]"),
        ({"x": (0, 3, 8), "t": (0,)}, "at least 1; got [0]"),
    ],
)
def test_calibration_data_that_does_not_fit(arrays: dict[str, tuple[int, ...]], says: str) -> None:
    data = {name: np.zeros(shape, np.float32) for name, shape in arrays.items()}
    error = refused(lambda: worker.check_calibration(data, {"x": (None, 3, None), "t": (None,)}))
    assert error.kind == "calibration"
    assert says in str(error)


def test_calibration_data_that_fits() -> None:
    data = {"x": np.zeros((4, 3, 8)), "t": np.zeros(4)}
    assert worker.check_calibration(data, {"x": (None, 3, None), "t": (None,)}) == 4


def pair(name: str) -> list[Any]:
    return [
        helper.make_node("QuantizeLinear", [name, "s"], [f"{name}.q"]),
        helper.make_node("DequantizeLinear", [f"{name}.q", "s"], [f"{name}.dq"]),
    ]


def test_counts_only_products_of_two_dequantised_factors() -> None:
    nodes = [
        *pair("x"),
        *pair("w"),
        helper.make_node("Conv", ["x.dq", "w.dq", "bias"], ["y"]),
        helper.make_node("Add", ["x.dq", "y"], ["z"]),
        helper.make_node("MatMul", ["z", "v"], ["out"]),
    ]
    assert worker.quantized_operators(nodes) == {"Conv": 1}


def test_one_factor_is_an_error() -> None:
    """What modelopt does without a word where it knows no type: float arithmetic on rounded weights."""
    nodes = [*pair("w"), helper.make_node("Conv", ["x", "w.dq"], ["y"], name="node_conv2d_1")]
    error = refused(lambda: worker.quantized_operators(nodes))
    assert str(error) == "modelopt quantised only one factor of Conv node_conv2d_1"


def test_shapes_of_inputs(network: Network) -> None:
    graph = onnx.load(str(network[0])).graph
    assert worker.input_shapes(graph) == {"sample": (None, 4, 8, 8), "time": (None,), "text": (None, 5, 32)}


def test_any_error_is_one_bounded_line() -> None:
    assert worker.one_line(KeyError("a\nb")) == "KeyError: 'a\\nb'"
    assert worker.one_line(ValueError("a\n  b")) == "ValueError: a b"
    assert len(worker.one_line(ValueError("x" * 5000))) < 500


def test_the_program_without_modelopt(tmp_path: Path) -> None:
    """In this environment: the missing package is the result, and nothing is half written."""
    result = tmp_path / "result.json"
    command = [sys.executable, "-I", str(SOURCE), str(write_job(tmp_path / "job")), str(result)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    (line,) = result.read_text().splitlines()
    answer = json.loads(line)
    assert (answer["ok"], answer["kind"]) == (False, "versions")
    assert "No module named 'modelopt'" in answer["error"]
    assert not list(tmp_path.glob("*.partial"))


def test_the_program_called_wrongly() -> None:
    done = subprocess.run([sys.executable, "-I", str(SOURCE)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage" in done.stderr


# -- modelopt itself ------------------------------------------------------------------------------------------------------


@pytest.fixture
def real_modelopt(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.delenv("DISTILL_RT_CACHE")  # the user's own cache may hold the environment
    if find_python() is None:
        pytest.skip(f"no environment with nvidia-modelopt, 1.4 GB: modelopt itself is not tested ({SETUP_COMMAND})")


@pytest.mark.usefixtures("real_modelopt")
@pytest.mark.parametrize(("mode", "limit"), [("int8", 1 << 30), ("fp8", 1 << 30), ("int8", 1000)])
def test_modelopt_itself(network: Network, rows: Any, tmp_path: Path, mode: Mode, limit: int) -> None:
    path, component = network
    quantized = quantize_graph(
        path, component, mode, rows, tmp_path / "q.onnx", single_file_limit_bytes=limit, time_limit_seconds=240
    )
    assert quantized.report["operators"] == {"Conv": 1, "MatMul": 2}
    assert quantized.report["versions"]["nvidia-modelopt"].startswith("0.47")
    assert quantized.report["quantize"] == quantized.report["dequantize"] == 6
    model = onnx.load(str(quantized.path))
    assert not model.graph.value_info, "stale"
    names = {item.name for item in model.graph.initializer}
    assert set(component.initializers) <= names, "weights keep their names for refitting"
    kinds = Counter(item.data_type for item in model.graph.initializer)
    assert kinds[onnx.TensorProto.INT8 if mode == "int8" else onnx.TensorProto.FLOAT8E4M3FN] == 6
    for item in model.graph.initializer:
        if item.data_type == onnx.TensorProto.INT8 and limit > 1000:
            assert not onnx.numpy_helper.to_array(item).any(), f"{item.name}: TensorRT knows no zero point but 0"
    (got,) = _run(quantized.path, rows)
    (want,) = _run(path, rows)
    assert np.abs(got - want).max() < 0.1 * np.abs(want).max()
    assert np.abs(got - want).max() > 0, "8 bits are not float32"


def _run(path: Path, rows: Any) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # As written, in float: ONNX Runtime's optimiser makes integer products of Q/DQ pairs, also of fp8, where it has none.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"]).run(None, rows)


def test_a_named_python_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    assert find_python() == Path(sys.executable)
