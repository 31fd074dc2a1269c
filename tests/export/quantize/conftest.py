"""Fixtures of the quantisation tests: a worker that plays its part, and a network with something to quantise."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import fake_modelopt
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from distill_rt.core.artifacts import Component
from distill_rt.core.spec import TensorSpec
from distill_rt.export.quantize.environment import PYTHON_VARIABLE

Worker = Callable[[str], Path]
CHANNELS = 32
INPUTS = (
    TensorSpec(name="sample", dtype="float32", shape=("B", 4, 8, 8)),
    TensorSpec(name="time", dtype="float32", shape=("B",)),
    TensorSpec(name="text", dtype="float32", shape=("B", 5, CHANNELS)),
)
OUTPUTS = (TensorSpec(name="prediction", dtype="float32", shape=("B", 4, 8, 8)),)


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Worker:
    """`worker("works")`: the environment is one that behaves so; returns its directory."""

    def install(behaviour: str) -> Path:
        directory = tmp_path / "worker"
        directory.mkdir(exist_ok=True)
        monkeypatch.setenv(PYTHON_VARIABLE, str(fake_modelopt.install(directory, behaviour)))
        return directory

    return install


def make_network() -> onnx.ModelProto:
    """conv_in, a time layer, GroupNormalization, a convolution, cross attention with projections, conv_out."""
    rng = np.random.default_rng(0)
    shapes = {
        "conv_in.weight": (CHANNELS, 4, 3, 3),
        "time.weight": (1, CHANNELS),
        "norm.weight": (CHANNELS,),
        "norm.bias": (CHANNELS,),
        "middle.weight": (CHANNELS, CHANNELS, 3, 3),
        "to_q.weight": (CHANNELS, CHANNELS),
        "to_k.weight": (CHANNELS, CHANNELS),
        "to_out.weight": (CHANNELS, CHANNELS),
        "conv_out.weight": (4, CHANNELS, 3, 3),
    }
    weights = {name: rng.standard_normal(shape).astype(np.float32) / 8 for name, shape in shapes.items()}
    constants = {
        "one": np.array([1]),
        "two": np.array([2, 3]),
        "tokens": np.array([0, CHANNELS, 64]),
        "image": np.array([0, CHANNELS, 8, 8]),
        "scale": np.array(CHANNELS**-0.5, np.float32),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Unsqueeze", ["time", "one"], ["time_B1"]),
        helper.make_node("MatMul", ["time_B1", "time.weight"], ["vector"], name="time"),
        helper.make_node("Unsqueeze", ["vector", "two"], ["vector_BC11"]),
        helper.make_node("Conv", ["sample", "conv_in.weight"], ["h0"], name="conv_in", **pads),
        helper.make_node("GroupNormalization", ["h0", "norm.weight", "norm.bias"], ["h1"], num_groups=4),
        helper.make_node("Add", ["h1", "vector_BC11"], ["h2"]),
        helper.make_node("Sigmoid", ["h2"], ["gate"]),
        helper.make_node("Mul", ["h2", "gate"], ["h3"]),
        helper.make_node("Conv", ["h3", "middle.weight"], ["h4"], name="middle", **pads),
        helper.make_node("Reshape", ["h4", "tokens"], ["h_BCS"]),
        helper.make_node("Transpose", ["h_BCS"], ["h_BSC"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["h_BSC", "to_q.weight"], ["q"], name="to_q"),
        helper.make_node("Mul", ["q", "scale"], ["q_scaled"]),
        helper.make_node("MatMul", ["text", "to_k.weight"], ["k"], name="to_k"),
        helper.make_node("Transpose", ["k"], ["k_BCL"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["q_scaled", "k_BCL"], ["scores"], name="scores"),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("MatMul", ["shares", "k"], ["mixed"], name="mix"),
        # As torch exports a linear layer: the weight is transposed on its way.
        helper.make_node("Transpose", ["to_out.weight"], ["to_out_t"], perm=[1, 0]),
        helper.make_node("MatMul", ["mixed", "to_out_t"], ["out_BSC"], name="to_out"),
        helper.make_node("Transpose", ["out_BSC"], ["out_BCS"], perm=[0, 2, 1]),
        helper.make_node("Reshape", ["out_BCS", "image"], ["h5"]),
        helper.make_node("Add", ["h4", "h5"], ["h6"]),
        helper.make_node("Conv", ["h6", "conv_out.weight"], ["raw"], name="conv_out", **pads),
        helper.make_node("Mul", ["raw", "scale"], ["prediction"]),
    ]
    graph = helper.make_graph(
        nodes,
        "network",
        [_value(tensor) for tensor in INPUTS],
        [_value(tensor) for tensor in OUTPUTS],
        [numpy_helper.from_array(array, name) for name, array in (weights | constants).items()],
        value_info=[helper.make_tensor_value_info("h1", TensorProto.FLOAT, ["B", CHANNELS, 8, 8])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)


def _value(tensor: TensorSpec) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.shape)


@pytest.fixture
def network(tmp_path: Path) -> tuple[Path, Component]:
    """The graph of `make_network` in a directory of its own, and its component."""
    directory = tmp_path / "source"
    directory.mkdir()
    model = make_network()
    onnx.save(model, str(directory / "network0.onnx"))
    weights = {item.name: item.name for item in model.graph.initializer if item.name.endswith((".weight", ".bias"))}
    component = Component(file="network0.onnx", inputs=INPUTS, outputs=OUTPUTS, opset=21, initializers=weights)
    return directory / "network0.onnx", component


@pytest.fixture
def rows() -> dict[str, NDArray[np.float32]]:
    """Calibration inputs of the network."""
    rng = np.random.default_rng(1)
    return {
        "sample": rng.standard_normal((8, 4, 8, 8)).astype(np.float32),
        "time": np.linspace(0, 999, 8, dtype=np.float32) / 999,
        "text": rng.standard_normal((8, 5, CHANNELS)).astype(np.float32),
    }
