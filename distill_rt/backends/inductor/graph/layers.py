"""ONNX operators with weights or with kernels of their own: name -> torch.

Legend: B images, C channels, H heads, L queries, S keys, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

from distill_rt.backends.inductor.graph.node import Call, Operator
from distill_rt.backends.inductor.graph.patterns import ATTENTION, LINEAR


def _convolution(call: Call) -> Tensor:
    return _convolve(call, transposed=False)


def _transposed_convolution(call: Call) -> Tensor:
    return _convolve(call, transposed=True)


def _convolve(call: Call, *, transposed: bool) -> Tensor:
    x, weight, attribute = call[0], call[1], call.node.attribute
    rank = weight.ndim - 2
    if attribute("auto_pad", "NOTSET") not in ("NOTSET", "VALID") or attribute("output_shape") is not None:
        raise call.node.unsupported("padding by rule (auto_pad, output_shape)")
    pads = list(attribute("pads", [0] * (2 * rank)))
    before, after = pads[:rank], pads[rank:]
    if before != after:
        if transposed:
            raise call.node.unsupported(f"uneven padding {pads}")
        x = functional.pad(x, [amount for pair in zip(before[::-1], after[::-1], strict=True) for amount in pair])
        before = [0] * rank
    y: Tensor = torch.convolution(
        x,
        weight,
        call.optional(2),
        list(attribute("strides", [1] * rank)),
        before,
        list(attribute("dilations", [1] * rank)),
        transposed,
        list(attribute("output_padding", [0] * rank)),
        attribute("group", 1),
    )
    return y


def _gemm(call: Call) -> Tensor:
    attribute = call.node.attribute
    a = call[0].T if attribute("transA", 0) else call[0]
    b = call[1] if attribute("transB", 0) else call[1].T
    alpha, beta, bias = attribute("alpha", 1.0), attribute("beta", 1.0), call.optional(2)
    if alpha == 1.0 and (bias is None or (beta == 1.0 and bias.shape == b.shape[:1])):
        return functional.linear(a, b, bias)
    product: Tensor = functional.linear(a, b) * alpha
    return product if bias is None else product + bias * beta


def _linear(call: Call) -> Tensor:
    return functional.linear(call[0], call[1], call.optional(2))


def _attention(call: Call) -> Tensor:
    """What `patterns` recognised, wherever its shapes are those of attention; else the three nodes as they were."""
    q, k_transposed, v, mask, attribute = call[0], call[1], call[2], call.optional(3), call.node.attribute
    k = _keys(call, k_transposed)
    scale, rank = attribute("scale"), q.ndim
    same = rank in (3, 4) and rank == v.ndim == k.ndim and q.shape[:-2] == k.shape[:-2] == v.shape[:-2]
    if not same or attribute("axis") not in (-1, rank - 1) or (mask is not None and mask.ndim > rank):
        scores = q @ k_transposed * scale
        return torch.softmax(scores if mask is None else scores + mask, attribute("axis")) @ v
    if rank == 4:
        return functional.scaled_dot_product_attention(q, k, v, mask, scale=scale)
    # (B * H, L, D): flash kernels want four dimensions.
    mask = None if mask is None else mask.expand(q.shape[0], q.shape[1], k.shape[1])[:, None]
    return functional.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], mask, scale=scale)[:, 0]


def _keys(call: Call, k_transposed: Tensor) -> Tensor:
    """K itself where the graph shows it: the transpose of a reshaped transpose would be copied."""
    k, flat = call.value(4), call.value(5)
    wanted = k_transposed.transpose(-1, -2).shape
    if isinstance(k, Tensor) and isinstance(flat, Tensor) and k.shape == wanted and flat.shape[1:] == wanted[-2:]:
        return k
    return k_transposed.transpose(-1, -2)


def _group_norm(call: Call) -> Tensor:
    attribute = call.node.attribute
    return functional.group_norm(call[0], attribute("num_groups"), call[1], call[2], attribute("epsilon", 1e-5))


def _layer_norm(call: Call) -> Tensor:
    if len([name for name in call.node.outputs if name]) > 1:
        raise call.node.unsupported("mean and deviation as outputs")
    x, attribute = call[0], call.node.attribute
    shape = x.shape[attribute("axis", -1) :]
    weight, bias = call[1], call.optional(2)
    if weight.shape == shape and (bias is None or bias.shape == shape):
        return functional.layer_norm(x, shape, weight, bias, attribute("epsilon", 1e-5))
    normal = functional.layer_norm(x, shape, None, None, attribute("epsilon", 1e-5)) * weight
    return normal if bias is None else normal + bias


def _instance_norm(call: Call) -> Tensor:
    return functional.instance_norm(call[0], weight=call[1], bias=call[2], eps=call.node.attribute("epsilon", 1e-5))


def _resize(call: Call) -> Tensor:
    """The two kinds that torch's exporter writes for `interpolate`: nearest, and linear over pixel centres."""
    x, attribute = call[0], call.node.attribute
    mode, coordinates = attribute("mode", "nearest"), attribute("coordinate_transformation_mode", "half_pixel")
    rounding = attribute("nearest_mode", "round_prefer_floor")
    nearest = mode == "nearest" and (coordinates, rounding) == ("asymmetric", "floor")
    linear = mode == "linear" and coordinates in ("half_pixel", "pytorch_half_pixel") and x.ndim == 4
    if not (nearest or linear) or attribute("antialias", 0) or attribute("axes") is not None:
        raise call.node.unsupported(f"mode {mode}, {coordinates}, {rounding}")
    if call.value(3) is not None:
        sizes = call.node.integers(call.value(3), "sizes")
    else:
        scales = call.node.known(call.value(2), "scales").ravel().tolist()
        sizes = [round(size * scale) for size, scale in zip(x.shape, scales, strict=True)]
        if any(size * scale != new for size, scale, new in zip(x.shape, scales, sizes, strict=True)):
            raise call.node.unsupported(f"scales {scales} of {list(x.shape)}")  # torch and ONNX round these differently
    if list(x.shape[:2]) != sizes[:2]:
        raise call.node.unsupported("batch or channels would be resized")
    return functional.interpolate(x, size=sizes[2:], mode="nearest" if nearest else "bilinear")


def _einsum(call: Call) -> Tensor:
    return torch.einsum(call.node.attribute("equation"), *(call[index] for index in range(len(call))))


LAYERS: Mapping[str, Operator] = {
    ATTENTION: _attention,
    LINEAR: _linear,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Einsum": _einsum,
    "Gemm": _gemm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "MatMul": lambda call: torch.matmul(call[0], call[1]),
    "Resize": _resize,
}
