"""GroupNormalization (opset 21) as Reshape, InstanceNormalization over the groups, Reshape, Mul, Add.

ONNX Runtime has no kernel for the operator on processors and expands it into some thirty small nodes; OpenVINO computes it in
float32 even where the rest runs in bfloat16. Both are fast at InstanceNormalization (docs/backends.md has figures).

Legend: B images, C channels, G groups.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distill_rt.core.optional import require
from distill_rt.export.passes.writer import EXACT, GraphWriter

if TYPE_CHECKING:
    import onnx_ir as ir


def decompose_group_norm(model: ir.Model) -> ir.Model:
    """Replace the operator wherever only the batch is unknown; nodes with other free dimensions stay."""
    onnx_ir = require("onnx_ir", extra="cpu")
    writer = GraphWriter([])
    per_channel: dict[tuple[ir.Value, int], ir.Value] = {}

    def spread(weight: ir.Value, rank: int) -> ir.Value:
        """A weight (C,) as (C, 1, ...): one node for all steps of a trajectory; the compiler folds it."""
        if (weight, rank) not in per_channel:
            shape = writer.constant([-1, *[1] * (rank - 2)], np.int64)
            per_channel[weight, rank] = _named(writer, "Reshape", f"{weight.name}/per_channel.{rank}", weight, shape)
        return per_channel[weight, rank]

    for node in list(model.graph):
        dims = static_dims(node)
        if dims is None:
            continue
        x, scale, bias = node.inputs
        assert x is not None
        assert scale is not None
        assert bias is not None
        (y,) = node.outputs
        groups, epsilon = node.attributes["num_groups"].as_int(), node.attributes.get("epsilon")
        start = len(writer.nodes)
        # 0 copies the batch from the input of the Reshape.
        grouped, ungrouped = writer.constant([0, groups, -1], np.int64), writer.constant([0, *dims], np.int64)
        ones, zeros = writer.constant(np.ones(groups)), writer.constant(np.zeros(groups))
        flat = _named(writer, "Reshape", f"{y.name}/flat", x, grouped)
        normal = _named(
            writer,
            "InstanceNormalization",
            f"{y.name}/normal",
            flat,
            ones,
            zeros,
            epsilon=1e-5 if epsilon is None else epsilon.as_float(),
        )
        unflat = _named(writer, "Reshape", f"{y.name}/unflat", normal, ungrouped)
        scaled = _named(writer, "Mul", f"{y.name}/scaled", unflat, spread(scale, len(dims) + 1))
        result = _named(writer, "Add", f"{y.name}/normalized", scaled, spread(bias, len(dims) + 1))
        onnx_ir.convenience.replace_nodes_and_values(model.graph, node, [node], writer.nodes[start:], [y], [result])
    for number, constant in enumerate(writer.initializers.values()):
        constant.name = f"group_norm/constant{number}"
        model.graph.register_initializer(constant)
    return model


def static_dims(node: ir.Node) -> list[int] | None:
    """The dimensions after the batch if this is a GroupNormalization and all of them are known."""
    shape = node.inputs[0].shape if node.op_type == "GroupNormalization" and node.inputs[0] is not None else None
    if shape is None or len(shape) < 3 or not all(isinstance(dim, int) for dim in shape[1:]):
        return None
    return [int(dim) for dim in shape[1:]]


def _named(writer: GraphWriter, kind: str, name: str, *inputs: Any, **attributes: Any) -> Any:
    output = writer.op(kind, *inputs, **attributes)
    output.name = name
    output.producer().name = name
    del output.producer().metadata_props[EXACT]
    return output
