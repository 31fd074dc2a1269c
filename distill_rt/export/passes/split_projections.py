"""A matrix product that is split at once, such as the two halves of a gated feed-forward layer, as one product for each part.

The split copies the result, and stands between the product and the activation that a compiler would fuse with it.

Legend: K features of the input, N features of the result.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.optional import require
from distill_rt.export.passes.projections import Projection, projection_of

if TYPE_CHECKING:
    import onnx_ir as ir


def split_projections(model: ir.Model) -> ir.Model:
    """Replace every MatMul (and Add) whose only reader is a Split of the features; steps share the parts of a weight."""
    onnx_ir = require("onnx_ir", extra="cpu")
    parts: dict[tuple[ir.Value, int], ir.Value] = {}

    def part(source: ir.Value, array: NDArray[np.float32], start: int, size: int) -> ir.Value:
        if (source, start) not in parts:
            tensor = onnx_ir.tensor(np.ascontiguousarray(array[..., start : start + size]))
            value = onnx_ir.Value(name=f"{source.name}/from{start}", const_value=tensor)
            value.dtype, value.shape = tensor.dtype, tensor.shape
            model.graph.register_initializer(value)
            parts[source, start] = value
        return parts[source, start]

    for node in list(model.graph):
        projection = projection_of(node) if node.op_type == "MatMul" else None
        split = None if projection is None else _split_behind(projection)
        if projection is None or split is None:
            continue
        weight, created, start = projection.matrix(), [], 0
        for output in split.outputs:
            assert output.shape is not None
            size = int(output.shape[-1])
            product = onnx_ir.node("MatMul", [node.inputs[0], part(projection.weight, weight, start, size)])
            made = [product]
            if projection.bias is not None:
                assert projection.bias.const_value is not None
                bias = part(projection.bias, projection.bias.const_value.numpy(), start, size)
                made.append(onnx_ir.node("Add", [product.outputs[0], bias]))
            for kind, new in zip(("product", "biased"), made, strict=False):
                new.name = new.outputs[0].name = f"{output.name}/{kind}"
                new.outputs[0].shape, new.outputs[0].dtype = output.shape, output.dtype
            created += made
            output.replace_all_uses_with(made[-1].outputs[0])
            start += size
        model.graph.insert_before(projection.nodes[0], created)
        for old in (split, *reversed(projection.nodes)):
            model.graph.remove(old, safe=True)
    require("onnx_ir.passes.common", extra="cpu").RemoveUnusedNodesPass()(model)
    model.graph.sort()  # a bias may come from a node behind the product
    return model


def _split_behind(projection: Projection) -> ir.Node | None:
    users = [user for user, _ in projection.y.uses()]
    if len(users) != 1 or users[0].op_type != "Split" or projection.y.is_graph_output() or projection.y.shape is None:
        return None
    split = users[0]
    axis = split.attributes["axis"].as_int() if "axis" in split.attributes else 0
    known = all(output.shape is not None and isinstance(output.shape[-1], int) for output in split.outputs)
    free = not any(output.is_graph_output() for output in split.outputs)
    return split if known and free and axis in (-1, len(projection.y.shape) - 1) else None
