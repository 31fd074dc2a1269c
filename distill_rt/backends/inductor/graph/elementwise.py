"""ONNX operators that work on every element by itself: name -> torch."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from distill_rt.backends.inductor.graph.node import Call, Operator

ONNX_TYPES: Mapping[int, torch.dtype] = {
    1: torch.float32,
    2: torch.uint8,
    3: torch.int8,
    5: torch.int16,
    6: torch.int32,
    7: torch.int64,
    9: torch.bool,
    10: torch.float16,
    11: torch.float64,
    16: torch.bfloat16,
}
"""`TensorProto.DataType`, onnx.proto."""


def _unary(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda call: function(call[0])


def _binary(function: Callable[[Any, Any], Tensor]) -> Operator:
    """Python's operators take numbers on either side and keep the tensor's type."""
    return lambda call: function(*call.operands())


def _variadic(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda call: functools.reduce(function, (call[index] for index in range(len(call))))


def _divide(call: Call) -> Tensor:
    dividend, divisor = call.operands()
    if any(isinstance(item, Tensor) and not item.is_floating_point() for item in (dividend, divisor)):
        return torch.div(call[0], call[1], rounding_mode="trunc")
    quotient: Tensor = dividend / divisor  # type: ignore[assignment]  # one of them is a tensor: else it would be known
    return quotient


def _modulo(call: Call) -> Tensor:
    function = torch.fmod if call.node.attribute("fmod", 0) else torch.remainder
    return function(call[0], call[1])


def _cast(call: Call) -> Tensor:
    number = int(call.node.attribute("to"))
    if number not in ONNX_TYPES:
        raise call.node.unsupported(f"element type {number}")
    return call[0].to(ONNX_TYPES[number])


def _clip(call: Call) -> Tensor:
    return torch.clamp(call[0], call.optional(1), call.optional(2))


def _gelu(call: Call) -> Tensor:
    return functional.gelu(call[0], approximate=call.node.attribute("approximate", "none"))


def _leaky_relu(call: Call) -> Tensor:
    return functional.leaky_relu(call[0], call.node.attribute("alpha", 0.01))


def _elu(call: Call) -> Tensor:
    return functional.elu(call[0], call.node.attribute("alpha", 1.0))


def _hard_sigmoid(call: Call) -> Tensor:
    return torch.clamp(call[0] * call.node.attribute("alpha", 0.2) + call.node.attribute("beta", 0.5), 0.0, 1.0)


def _where(call: Call) -> Tensor:
    _, first, second = call.operands()
    if not isinstance(first, Tensor) and not isinstance(second, Tensor):
        return torch.where(call[0], call[1], call[2])  # two Python numbers would lose their type
    return torch.where(call[0], first, second)


ELEMENTWISE: Mapping[str, Operator] = {
    "Abs": _unary(torch.abs),
    "Add": _binary(operator.add),
    "And": _binary(operator.and_),
    "Cast": _cast,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "Div": _divide,
    "Elu": _elu,
    "Equal": _binary(operator.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Gelu": _gelu,
    "Greater": _binary(operator.gt),
    "GreaterOrEqual": _binary(operator.ge),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _unary(functional.hardswish),
    "Identity": _unary(lambda x: x),
    "IsInf": _unary(torch.isinf),
    "IsNaN": _unary(torch.isnan),
    "LeakyRelu": _leaky_relu,
    "Less": _binary(operator.lt),
    "LessOrEqual": _binary(operator.le),
    "Log": _unary(torch.log),
    "Max": _variadic(torch.maximum),
    "Min": _variadic(torch.minimum),
    "Mod": _modulo,
    "Mul": _binary(operator.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _binary(operator.or_),
    "Pow": _binary(operator.pow),
    "Reciprocal": _unary(torch.reciprocal),
    "Relu": _unary(torch.relu),
    "Round": _unary(torch.round),
    "Sigmoid": _unary(torch.sigmoid),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Softplus": _unary(functional.softplus),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(operator.sub),
    "Sum": _variadic(torch.add),
    "Tanh": _unary(torch.tanh),
    "Where": _where,
}
