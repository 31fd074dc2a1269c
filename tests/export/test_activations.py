"""The upper bound of a graph's activations, against sums made by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from distill_rt.export.activations import peak_activation_bytes


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """x (B, 8) -> a -> b, c = a + b (B, 8), flag (B,) of bytes: a, b and c live at once."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("Exp", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["c"]),
        helper.make_node("Neg", ["c"], ["y"]),
    ]
    made = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["B", 8])], [value("y", TensorProto.FLOAT, ["B", 8])]
    )
    onnx.save(helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), tmp_path / "g.onnx")
    return tmp_path / "g.onnx"


@pytest.mark.parametrize(("batch", "float_bytes"), [(1, 4), (3, 4), (3, 2)])
def test_three_values_live_at_once(graph: Path, batch: int, float_bytes: int) -> None:
    assert peak_activation_bytes(graph, batch, float_bytes) == 3 * batch * 8 * float_bytes


def test_what_has_no_shape_for_onnx_counts_by_what_torch_wrote(graph: Path) -> None:
    """GroupNormalization: ONNX infers nothing behind it; the exporter's own shapes are in the file."""
    model = onnx.load(graph)
    model.graph.node[1].op_type = "Unknown"
    model.graph.node[1].domain = "nobody"
    model.opset_import.append(helper.make_opsetid("nobody", 1))
    model.graph.value_info.extend(
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", 8]) for name in ("a", "b", "c")
    )
    onnx.save(model, graph)
    assert peak_activation_bytes(graph, 2, 4) == 3 * 2 * 8 * 4
