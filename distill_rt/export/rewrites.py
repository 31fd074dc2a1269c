"""Graph rewrites that one backend wants and another does not, applied to a copy of the graph at compile time.

The bundle keeps the graph as exported; what is faster depends on the compiler, so it does not belong there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_rt.core.optional import require

SINGLE_FILE_LIMIT_BYTES = 1 << 30


def decompose_group_norm(model: Any) -> int:
    """GroupNormalization (opset 21) as Reshape, InstanceNormalization over the groups, Reshape, Mul, Add.

    ONNX Runtime has no kernel for the operator on processors and expands it into some thirty small nodes; OpenVINO computes it
    in float32 even where the rest runs in bfloat16. Both are fast at InstanceNormalization (docs/backends.md has figures).

    Args:
        model: onnx.ModelProto with shapes inferred; nodes whose input has free dimensions beside the batch are left alone.

    Returns:
        The number of nodes replaced.
    """
    onnx = require("onnx", extra="cpu")
    graph = model.graph
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.value_info, *graph.output]
    }
    nodes: list[Any] = []
    num_replaced = 0

    def constant(name: str, array: Any) -> str:
        graph.initializer.append(onnx.numpy_helper.from_array(array, name))
        return name

    for node in graph.node:
        shape = shapes.get(node.input[0], []) if node.op_type == "GroupNormalization" else []
        if len(shape) < 3 or not all(shape[1:]):
            nodes.append(node)
            continue
        attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
        groups, epsilon = attributes["num_groups"], attributes.get("epsilon", 1e-5)
        x, scale, bias = node.input
        (y,) = node.output
        per_channel = constant(f"{y}/per_channel", np.array([shape[1], *[1] * (len(shape) - 2)], np.int64))
        # 0 copies the batch from the input of the Reshape.
        grouped = constant(f"{y}/grouped", np.array([0, groups, -1], np.int64))
        ungrouped = constant(f"{y}/ungrouped", np.array([0, *shape[1:]], np.int64))
        ones = constant(f"{y}/ones", np.ones(groups, np.float32))
        zeros = constant(f"{y}/zeros", np.zeros(groups, np.float32))

        def make(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
            nodes.append(onnx.helper.make_node(op, inputs, [output], name=output, **attributes))
            return output

        flat = make("Reshape", [x, grouped], f"{y}/flat")
        normal = make("InstanceNormalization", [flat, ones, zeros], f"{y}/normal", epsilon=epsilon)
        unflat = make("Reshape", [normal, ungrouped], f"{y}/unflat")
        scale = make("Reshape", [scale, per_channel], f"{y}/scale")  # a constant: the compiler folds it
        bias = make("Reshape", [bias, per_channel], f"{y}/bias")
        scaled = make("Mul", [unflat, scale], f"{y}/scaled")
        make("Add", [scaled, bias], y)
        num_replaced += 1
    del graph.node[:]
    graph.node.extend(nodes)
    return num_replaced


REWRITES: Mapping[str, Callable[[Any], int]] = {"decompose-group-norm": decompose_group_norm}


def rewrite_graph(source: Path, names: Sequence[str], destination: Path) -> Path:
    """Apply rewrites to a graph file.

    Returns:
        `destination`, or `source` if no rewrite changed anything.
    """
    if not names:
        return source
    onnx = require("onnx", extra="cpu")
    model = onnx.load(str(source))
    if not sum(REWRITES[name](model) for name in names):
        return source
    num_bytes = model.ByteSize()
    onnx.save(
        model,
        str(destination),
        save_as_external_data=num_bytes > SINGLE_FILE_LIMIT_BYTES,
        location=f"{destination.name}.data",
    )
    return destination
