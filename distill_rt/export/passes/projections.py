"""Matrix products of one input, such as the queries, keys and values of an attention, as one product that is split.

One larger product reads its input once and starts the threads once. Splitting copies the result, so this pays only while that
stays in a cache close to the core (`MAX_ELEMENTS`). In a trajectory the steps share the joined weight.

Legend: K features of the input, N features of all products together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.optional import require

if TYPE_CHECKING:
    import onnx_ir as ir

MAX_ELEMENTS = 1 << 18
"""Of the joined result for one image: half a megabyte in bfloat16."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Projection:
    """``y = x @ weight (+ bias)``: a MatMul with the Add behind it, or a Gemm."""

    nodes: tuple[ir.Node, ...]
    weight: ir.Value
    transposed: bool
    """The initializer is (N, K), as torch keeps it."""
    bias: ir.Value | None
    y: ir.Value

    @property
    def num_features(self) -> int:
        return int(self.weight.shape[0 if self.transposed else 1])

    def matrix(self) -> NDArray[np.float32]:
        """The weight as (K, N)."""
        assert self.weight.const_value is not None
        weight: NDArray[np.float32] = self.weight.const_value.numpy()
        return weight.T if self.transposed else weight

    def num_elements(self) -> float:
        """Of the result for one image, infinite if unknown."""
        shape = self.y.shape
        if shape is None or not all(isinstance(dim, int) for dim in shape[1:]):
            return math.inf
        return math.prod(int(dim) for dim in shape[1:])


def merge_projections(model: ir.Model, *, max_elements: int = MAX_ELEMENTS) -> ir.Model:
    """Join all products of the same input whose weights and biases are initializers and whose results are small."""
    onnx_ir = require("onnx_ir", extra="cpu")
    groups: dict[tuple[ir.Value, bool, bool], list[Projection]] = {}
    for node in model.graph:
        projection = projection_of(node)
        if projection is not None and node.inputs[0] is not None:
            key = (node.inputs[0], projection.bias is not None, node.op_type == "Gemm")
            groups.setdefault(key, []).append(projection)
    joined: dict[tuple[ir.Value, ...], ir.Value] = {}
    for (x, has_bias, is_gemm), group in groups.items():
        if len(group) < 2 or sum(p.num_elements() for p in group) > max_elements:
            continue
        weight = _joined(model.graph, joined, [p.weight for p in group], [p.transposed for p in group])
        biases = [p.bias for p in group if p.bias is not None]
        first, name = group[0].nodes[0], f"{group[0].y.name}/joined"
        if is_gemm:
            bias = _joined(model.graph, joined, biases, [False] * len(biases)) if has_bias else None
            nodes = [onnx_ir.node("Gemm", [x, weight, bias] if bias is not None else [x, weight], name=name)]
        else:
            nodes = [onnx_ir.node("MatMul", [x, weight], name=name)]
            if has_bias:
                bias = _joined(model.graph, joined, biases, [False] * len(biases))
                nodes.append(onnx_ir.node("Add", [nodes[0].outputs[0], bias], name=f"{name}/biased"))
        sizes = onnx_ir.tensor(np.array([p.num_features for p in group], np.int64))
        split_sizes = onnx_ir.Value(name=f"{name}/sizes", const_value=sizes)
        split_sizes.dtype, split_sizes.shape = onnx_ir.DataType.INT64, onnx_ir.Shape(sizes.shape)
        model.graph.register_initializer(split_sizes)
        nodes.append(
            onnx_ir.node(
                "Split", [nodes[-1].outputs[0], split_sizes], {"axis": -1}, num_outputs=len(group), name=f"{name}/split"
            )
        )
        for node in nodes:
            for i, output in enumerate(node.outputs):
                output.name = f"{node.name}.{i}"
        for projection, output in zip(group, nodes[-1].outputs, strict=True):
            output.shape, output.dtype = projection.y.shape, projection.y.dtype
        model.graph.insert_before(first, nodes)
        for projection, output in zip(group, nodes[-1].outputs, strict=True):
            projection.y.replace_all_uses_with(output, replace_graph_outputs=True)
            for node in reversed(projection.nodes):
                model.graph.remove(node, safe=True)
    common = require("onnx_ir.passes.common", extra="cpu")
    common.RemoveUnusedNodesPass()(model)
    model.graph.sort()
    return model


def projection_of(node: ir.Node) -> Projection | None:
    if node.op_type == "Gemm":
        return _gemm(node)
    if node.op_type != "MatMul" or node.outputs[0].is_graph_output():
        return None
    found = _weight(node.inputs[1])
    if found is None:
        return None
    weight, transposed = found
    users = list(node.outputs[0].uses())
    if len(users) == 1 and users[0][0].op_type == "Add":
        add, position = users[0]
        bias = add.inputs[1 - position]
        if _is_bias(bias):
            return Projection(nodes=(node, add), weight=weight, transposed=transposed, bias=bias, y=add.outputs[0])
    return Projection(nodes=(node,), weight=weight, transposed=transposed, bias=None, y=node.outputs[0])


def _gemm(node: ir.Node) -> Projection | None:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    plain = attributes.get("alpha", 1.0) == attributes.get("beta", 1.0) == 1.0 and not attributes.get("transA", 0)
    if not plain or not _is_matrix(weight) or (bias is not None and not _is_bias(bias)):
        return None
    assert weight is not None
    transposed = bool(attributes.get("transB", 0))
    return Projection(nodes=(node,), weight=weight, transposed=transposed, bias=bias, y=node.outputs[0])


def _weight(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """The initializer behind the second operand of a MatMul, and whether it comes through a Transpose."""
    if _is_matrix(value):
        assert value is not None
        return value, False
    producer = None if value is None else value.producer()
    if producer is not None and producer.op_type == "Transpose" and _is_matrix(producer.inputs[0]):
        assert producer.inputs[0] is not None
        return producer.inputs[0], True
    return None


def _is_matrix(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 2


def _is_bias(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and len(value.const_value.shape) == 1


def _joined(
    graph: ir.Graph, known: dict[tuple[ir.Value, ...], ir.Value], parts: Sequence[ir.Value], transposed: Sequence[bool]
) -> ir.Value:
    """Weights (K, N) or biases (N,) side by side; the same parts give the same initializer."""
    onnx_ir = require("onnx_ir", extra="cpu")
    key = tuple(parts)
    if key not in known:
        arrays = [part.const_value.numpy() for part in parts if part.const_value is not None]
        array = np.concatenate([a.T if turn else a for a, turn in zip(arrays, transposed, strict=True)], axis=-1)
        known[key] = onnx_ir.Value(
            name=f"joined{len(known)}/{parts[0].name}", const_value=onnx_ir.tensor(np.ascontiguousarray(array))
        )
        known[key].dtype, known[key].shape = onnx_ir.DataType.FLOAT, onnx_ir.Shape(array.shape)
        graph.register_initializer(known[key])
    return known[key]
