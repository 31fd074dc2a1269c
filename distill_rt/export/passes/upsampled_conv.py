"""Nearest upsampling by two and the 3x3 convolution behind it, as one transposed convolution with 4/9 of the work.

Three of the nine taps of such a convolution always meet copies of one pixel, so only 2x2 of them are different: output pixel
2p + e of a row reads input pixels p - 1, p (e = 0) or p, p + 1 (e = 1). Added up, the taps are the kernel of a
transposed convolution of size 4, stride 2 and padding 1. Equal up to the order of sums.

Legend: I input channels, O output channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.optional import require

if TYPE_CHECKING:
    import onnx_ir as ir

SUMS = np.array([[0, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 0]], np.float32)
"""Tap k of the 3 goes to the taps j = e + 2 - k of the 4: up[2p + e] = x[p] and y[i] = sum_k w[k] up[i + k - 1]."""


def fold_upsampling(model: ir.Model) -> ir.Model:
    """Replace every pair Resize, Conv that has this form; a weight that several steps share gives one that they share."""
    onnx_ir = require("onnx_ir", extra="cpu")
    weights: dict[ir.Value, ir.Value] = {}
    for resize in list(model.graph):
        conv = _conv_behind(resize)
        if conv is None:
            continue
        x, weight = resize.inputs[0], conv.inputs[1]
        assert weight is not None
        assert weight.const_value is not None
        if weight not in weights:
            kernel = transposed_kernel(weight.const_value.numpy())
            weights[weight] = onnx_ir.Value(name=f"{weight.name}/upsampled", const_value=onnx_ir.tensor(kernel))
            weights[weight].dtype, weights[weight].shape = onnx_ir.DataType.FLOAT, onnx_ir.Shape(kernel.shape)
            model.graph.register_initializer(weights[weight])
        node = onnx_ir.node(
            "ConvTranspose",
            [x, weights[weight], *conv.inputs[2:]],
            {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]},
            name=f"{conv.name}/upsampled",
            metadata_props=dict(conv.metadata_props),
        )
        onnx_ir.convenience.replace_nodes_and_values(model.graph, conv, [conv], [node], conv.outputs, node.outputs)
        model.graph.remove(resize, safe=True)
    require("onnx_ir.passes.common", extra="cpu").RemoveUnusedNodesPass()(model)
    return model


def transposed_kernel(weight_OI33: NDArray[np.float32]) -> NDArray[np.float32]:
    """(I, O, 4, 4), the layout of ConvTranspose."""
    kernel: NDArray[np.float32] = np.einsum("oikl,ka,lb->ioab", weight_OI33, SUMS, SUMS)
    return kernel


def _conv_behind(node: ir.Node) -> ir.Node | None:
    """The convolution, if this is upsampling by exactly two of nearest pixels and nothing else reads it."""
    if node.op_type != "Resize" or not _doubles(node) or node.outputs[0].is_graph_output():
        return None
    users = [user for user, _ in node.outputs[0].uses()]
    if len(users) != 1 or users[0].op_type != "Conv":
        return None
    conv, attributes = users[0], users[0].attributes
    weight = conv.inputs[1]
    if weight is None or weight.const_value is None or weight.shape is None or list(weight.shape[2:]) != [3, 3]:
        return None
    plain = {"group": 1, "strides": [1, 1], "dilations": [1, 1], "auto_pad": "NOTSET"}
    same = all(
        name not in attributes or attributes[name].value in (value, _tuple(value)) for name, value in plain.items()
    )
    return conv if same and "pads" in attributes and list(attributes["pads"].as_ints()) == [1, 1, 1, 1] else None


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _doubles(resize: ir.Node) -> bool:
    attributes = {name: attribute.value for name, attribute in resize.attributes.items()}
    nearest = (
        attributes.get("mode", "nearest") == "nearest"
        and attributes.get("coordinate_transformation_mode", "half_pixel") == "asymmetric"
        and attributes.get("nearest_mode", "round_prefer_floor") == "floor"
        and "axes" not in attributes
    )
    scales = resize.inputs[2] if len(resize.inputs) > 2 else None
    if not nearest or scales is None or scales.const_value is None:
        return False
    return bool(np.array_equal(scales.const_value.numpy(), [1, 1, 2, 2]))
