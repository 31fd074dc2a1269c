"""A graph as a torch module: nodes evaluated one after the other, known values folded while it is traced.

Written here because no maintained library reads these graphs: onnx2torch (1.5.15) has no converter for the Transpose of opset
21, onnx2pytorch ends at older opsets, onnx2fx is one early release.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill_rt.backends.inductor.graph.elementwise import ELEMENTWISE
from distill_rt.backends.inductor.graph.layers import LAYERS
from distill_rt.backends.inductor.graph.layout import LAYOUT
from distill_rt.backends.inductor.graph.node import Array, Call, Node, Operator, Value, torch_tensor
from distill_rt.backends.inductor.graph.read import Graph
from distill_rt.backends.inductor.graph.reduction import REDUCTION
from distill_rt.core.errors import TargetError
from distill_rt.core.optional import require

OPERATORS: Mapping[str, Operator] = {**ELEMENTWISE, **LAYOUT, **REDUCTION, **LAYERS}
"""ONNX operators of opsets 18 to 22, and ours of `patterns`."""


class GraphModule(nn.Module):
    """The network of a graph for static shapes.

    Weights are buffers under their initializer names, below ``weights``. Other initializers are known values; one that an
    operation on tensors needs becomes a buffer below ``constants``, once the module has seen the shapes (`settle`).

    Args:
        weights: names of the initializers that are weights.
        device: where weights and constants live.
    """

    def __init__(self, graph: Graph, weights: Iterable[str], device: torch.device) -> None:
        super().__init__()
        _check_operators(graph)
        self._graph = graph
        self._device = device
        self._weight_names = frozenset(weights) & graph.initializers.keys()
        self._known: dict[str, Array] = {
            name: array for name, array in graph.initializers.items() if name not in self._weight_names
        }
        self._constant_names: dict[str, str] = {}
        self._wanted: dict[str, Array] | None = None
        self.weights = nn.Module()
        self.constants = nn.Module()
        for name in sorted(self._weight_names):
            _set_buffer(self.weights, name, torch_tensor(graph.initializers[name]).to(device))

    def settle(self, inputs: tuple[Tensor, ...]) -> None:
        """Evaluate once on shapes alone: folds what is known for them and makes the constants.

        Raises:
            TargetError: an operator refuses its attributes, or the shapes do not fit.
        """
        from torch._subclasses.fake_tensor import FakeTensorMode

        self._wanted = {}
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            self(*(mode.from_tensor(item) for item in inputs))
        wanted, self._wanted = self._wanted, None
        for index, (name, array) in enumerate(wanted.items()):
            self._constant_names[name] = f"c{index}"
            self.constants.register_buffer(f"c{index}", torch_tensor(array).to(self._device))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        values: dict[str, Value] = dict(zip(self._graph.inputs, inputs, strict=True))
        values |= {name: self.weights.get_buffer(name) for name in self._weight_names}
        values |= self._known
        for node in self._graph.nodes:
            if node.outputs[0] in self._known:
                continue
            given = tuple(values[name] if name else None for name in node.inputs)
            results = self._evaluate(node, given, values)
            for name, result in zip(node.outputs, results, strict=False):  # the last outputs may be left out
                values[name] = result
                if isinstance(result, np.ndarray):
                    self._known[name] = result
        return tuple(self._tensor(name, values[name]) for name in self._graph.outputs)

    def _evaluate(self, node: Node, given: tuple[Value | None, ...], values: Mapping[str, Value]) -> tuple[Value, ...]:
        if node.operator in ("Shape", "Size") and isinstance(given[0], Tensor):
            return (_shape(node, given[0]),)
        if node.proto is not None and all(item is None or isinstance(item, np.ndarray) for item in given):
            return _fold(node, given)

        def tensor(value: Value) -> Tensor:
            if isinstance(value, Tensor):
                return value
            name = next(name for name in node.inputs if name and values[name] is value)
            return self._tensor(name, value)

        try:
            results = OPERATORS[node.operator](Call(node=node, inputs=given, tensor=tensor))
        except (RuntimeError, ValueError, IndexError) as error:
            raise node.unsupported(" ".join(str(error).split())[:200]) from error
        return results if isinstance(results, tuple) else (results,)

    def _tensor(self, name: str, value: Value) -> Tensor:
        if isinstance(value, Tensor):
            return value
        if self._wanted is not None:
            self._wanted[name] = value
            return torch.empty(value.shape, dtype=torch_tensor(value).dtype, device=self._device)
        return self.constants.get_buffer(self._constant_names[name])


def _shape(node: Node, x: Tensor) -> Array:
    if node.operator == "Size":
        return np.array(x.numel(), np.int64)
    return np.array(x.shape[node.attribute("start", 0) : node.attribute("end")], np.int64)


def _fold(node: Node, given: tuple[Value | None, ...]) -> tuple[Value, ...]:
    """ONNX's own reference for what is known: indices, shapes, masks."""
    reference = require("onnx.reference", extra="inductor")
    named = {name: value for name, value in zip(node.inputs, given, strict=True) if name}
    results = reference.ReferenceEvaluator(node.proto).run(None, named)
    return tuple(np.asarray(result) for result in results)


def _check_operators(graph: Graph) -> None:
    for node in graph.nodes:
        if node.operator not in OPERATORS and node.operator not in FOLDED_ONLY:
            raise TargetError(
                f"the graph has the operator {node.operator} (node {node.name or node.outputs[0]}), which inductor targets do "
                "not take",
                code="operator-unsupported",
                hint="choose another target, or report this with the network's configuration",
                details={"operator": node.operator, "node": node.name or node.outputs[0]},
            )


FOLDED_ONLY = frozenset({"Constant", "ConstantOfShape", "Range", "Shape", "Size"})
"""Operators whose results are known wherever these targets take them."""


def _set_buffer(root: nn.Module, name: str, tensor: Tensor) -> None:
    """`register_buffer` for a name with dots: modules in between."""
    *path, last = name.split(".")
    module: Any = root
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    module.register_buffer(last, tensor)
