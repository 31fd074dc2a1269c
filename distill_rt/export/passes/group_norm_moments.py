"""GroupNormalization from the moments of its channels, for compilers that keep images with the channels innermost.

As InstanceNormalization of a reshaped image (`distill_rt.export.passes.group_norm`) the operator forces planar memory: the
image is reordered before it and after it. Means over pixels do not care about the layout, and what remains is one shift and
one factor per channel, which compilers fuse with the activation behind them.

    d = x - E[x],  y = d * scale / sqrt(E[d^2] + epsilon) + bias         E over the pixels and channels of a group

The second moment is centred: in bfloat16 E[x^2] - E[x]^2 loses a group whose mean is ten times its deviation. The mean over a
group of channel means is a product with a matrix of blocks 1/k: a Reshape there would force planar memory again.

Legend: B images, C channels, G groups, k = C/G channels of a group.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from distill_rt.core.optional import require
from distill_rt.export.passes.group_norm import static_dims
from distill_rt.export.passes.writer import EXACT, GraphWriter

if TYPE_CHECKING:
    import onnx_ir as ir

MIN_ELEMENTS = 1 << 16
"""Elements of one image below which reordering it is cheaper than ten small nodes."""


def group_norm_moments(model: ir.Model, *, min_elements: int = MIN_ELEMENTS) -> ir.Model:
    """Replace the operator on images of at least `min_elements`; all sizes but the batch must be known."""
    onnx_ir = require("onnx_ir", extra="cpu")
    writer = GraphWriter([])
    per_channel: dict[ir.Value, ir.Value] = {}

    def spread(weight: ir.Value) -> ir.Value:
        """A weight (C,) as (C, 1, 1): one node for all steps of a trajectory; the compiler folds it."""
        if weight not in per_channel:
            per_channel[weight] = writer.op("Reshape", weight, writer.constant([-1, 1, 1], np.int64))
        return per_channel[weight]

    for node in list(model.graph):
        dims = static_dims(node)
        if dims is None or len(dims) != 3 or int(np.prod(dims)) < min_elements:
            continue
        x, scale, bias = node.inputs
        assert bias is not None
        (y,) = node.outputs
        epsilon = node.attributes.get("epsilon")
        start = len(writer.nodes)
        result = _normalized(
            writer,
            x,
            scale,
            spread(bias),
            num_groups=node.attributes["num_groups"].as_int(),
            num_channels=dims[0],
            epsilon=1e-5 if epsilon is None else epsilon.as_float(),
        )
        for created in writer.nodes[start:]:
            created.name = f"{y.name}/{created.name}"
            created.outputs[0].name = created.name
            del created.metadata_props[EXACT]
        onnx_ir.convenience.replace_nodes_and_values(model.graph, node, [node], writer.nodes[start:], [y], [result])
    for number, constant in enumerate(writer.initializers.values()):
        constant.name = f"group_norm_moments/constant{number}"
        model.graph.register_initializer(constant)
    return model


def _normalized(
    w: GraphWriter, x: Any, scale: Any, bias_C11: Any, *, num_groups: int, num_channels: int, epsilon: float
) -> Any:
    size = num_channels // num_groups
    blocks = w.constant(np.kron(np.eye(num_groups), np.full((size, size), 1.0 / size)))
    pixels, image = w.constant([2, 3], np.int64), w.constant([0, num_channels, 1, 1], np.int64)

    def group_mean(value: Any) -> Any:
        """(B, C): for every channel the mean of its group."""
        return w.op("MatMul", w.op("ReduceMean", value, pixels, keepdims=0), blocks)

    centred = w.op("Sub", x, w.op("Reshape", group_mean(x), image))
    variance = group_mean(w.op("Mul", centred, centred))
    deviation = w.op("Sqrt", w.op("Add", variance, w.constant(epsilon)))
    factor = w.op("Reshape", w.op("Div", scale, deviation), image)
    return w.op("Add", w.op("Mul", centred, factor), bias_C11)
