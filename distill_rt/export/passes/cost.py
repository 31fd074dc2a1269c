"""Multiply-accumulates of a graph, per image, from its shapes: convolutions and matrix products, which are nearly all of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def count_macs(model: ir.Model) -> int:
    """Multiply-accumulates for one image; a batch of 2B (cfg) counts twice.

    A dimension that nobody inferred is taken as the one before it: scores of an attention have as many keys as queries.
    """
    return sum(node_macs(node) for node in model.graph)


def node_macs(node: ir.Node) -> int:
    """Those of one node; 0 for everything but Conv, ConvTranspose, MatMul and Gemm."""
    if node.op_type not in ("Conv", "ConvTranspose", "MatMul", "Gemm"):
        return 0
    first, second = node.inputs[0], node.inputs[1]
    assert first is not None
    assert second is not None
    weight = _dims(second.shape)
    if node.op_type == "Conv":
        return _size(node.outputs[0].shape) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return _size(first.shape) * math.prod(weight[1:])
    inner = _dims(first.shape)
    transposed = node.op_type == "Gemm" and "transA" in node.attributes and node.attributes["transA"].as_int()
    return _size(node.outputs[0].shape) * (inner[0] if transposed else inner[-1]) if inner else 0


def _size(shape: ir.Shape | None) -> int:
    return math.prod(_dims(shape))


def _dims(shape: ir.Shape | None) -> list[int]:
    dims: list[int] = []
    for dim in shape or ():
        if isinstance(dim, int):
            dims.append(dim)
        else:
            dims.append(dims[-1] if dims else 2 if str(dim) == "N" else 1)
    return dims
