"""ONNX operators that take several elements to one: name -> torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distill_rt.backends.inductor.graph.node import Call, Operator


def _reduce(function: Callable[..., Tensor]) -> Operator:
    """Axes are an input since opset 18; none means all, or nothing where ``noop_with_empty_axes`` says so."""

    def evaluate(call: Call) -> Tensor:
        axes = [] if call.value(1) is None else call.node.integers(call.value(1), "axes")
        if not axes and call.node.attribute("noop_with_empty_axes", 0):
            return call[0]
        return function(call[0], axes or list(range(call[0].ndim)), bool(call.node.attribute("keepdims", 1)))

    return evaluate


def _norm2(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    return torch.sqrt(torch.sum(x * x, axes, keep))


def _extreme(function: Callable[..., Tensor]) -> Operator:
    def evaluate(call: Call) -> Tensor:
        if call.node.attribute("select_last_index", 0):
            raise call.node.unsupported("select_last_index")
        return function(call[0], call.node.attribute("axis", 0), bool(call.node.attribute("keepdims", 1)))

    return evaluate


def _softmax(function: Callable[..., Tensor]) -> Operator:
    return lambda call: function(call[0], call.node.attribute("axis", -1))


def _top_k(call: Call) -> tuple[Tensor, ...]:
    (number,) = call.node.integers(call.value(1), "k")
    attribute = call.node.attribute
    largest, is_sorted = bool(attribute("largest", 1)), bool(attribute("sorted", 1))
    return tuple(torch.topk(call[0], number, attribute("axis", -1), largest, is_sorted))


def _cumulative_sum(call: Call) -> Tensor:
    if call.node.attribute("exclusive", 0) or call.node.attribute("reverse", 0):
        raise call.node.unsupported("exclusive or reverse")
    (axis,) = call.node.integers(call.value(1), "axis")
    return torch.cumsum(call[0], axis)


def _pool(function: Callable[..., Tensor]) -> Operator:
    """Pooling over images without any of the odd settings."""

    def evaluate(call: Call) -> Tensor:
        attribute = call.node.attribute
        kernel, pads = attribute("kernel_shape"), attribute("pads", [0, 0, 0, 0])
        plain: dict[str, Any] = {
            "auto_pad": "NOTSET",
            "ceil_mode": 0,
            "storage_order": 0,
            "dilations": [1] * len(kernel),
        }
        odd = [name for name, value in plain.items() if attribute(name, value) != value]
        if call.node.operator == "AveragePool" and any(pads) and not attribute("count_include_pad", 0):
            odd.append("count_include_pad")
        if len(kernel) != 2 or pads[:2] != pads[2:] or odd:
            raise call.node.unsupported(f"kernel {kernel}, pads {pads}, {', '.join(odd) or 'no odd settings'}")
        return function(call[0], kernel, attribute("strides", [1, 1]), pads[:2])

    return evaluate


def _global_average(call: Call) -> Tensor:
    return call[0].mean(list(range(2, call[0].ndim)), keepdim=True)


REDUCTION: Mapping[str, Operator] = {
    "ArgMax": _extreme(torch.argmax),
    "ArgMin": _extreme(torch.argmin),
    "AveragePool": _pool(functional.avg_pool2d),
    "CumSum": _cumulative_sum,
    "GlobalAveragePool": _global_average,
    "LogSoftmax": _softmax(torch.log_softmax),
    "MaxPool": _pool(functional.max_pool2d),
    "ReduceL2": _reduce(_norm2),
    "ReduceMax": _reduce(torch.amax),
    "ReduceMean": _reduce(torch.mean),
    "ReduceMin": _reduce(torch.amin),
    "ReduceSum": _reduce(torch.sum),
    "Softmax": _softmax(torch.softmax),
    "TopK": _top_k,
}
