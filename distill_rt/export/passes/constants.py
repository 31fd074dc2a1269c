"""New constants of a graph that exists already."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from distill_rt.core.optional import require

if TYPE_CHECKING:
    import onnx_ir as ir


def add_initializer(graph: ir.Graph, name: str, array: Any) -> ir.Value:
    """Register a NumPy array as an initializer of this name, which must be new; its value."""
    assert name not in graph.initializers, name
    onnx_ir = require("onnx_ir", extra="export")
    tensor = onnx_ir.tensor(array, name=name)
    value: ir.Value = onnx_ir.Value(
        name=name, type=onnx_ir.TensorType(tensor.dtype), shape=onnx_ir.Shape(array.shape), const_value=tensor
    )
    graph.register_initializer(value)
    return value
