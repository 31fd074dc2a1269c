"""One node of an ONNX graph, and what its operator is given.

Values while a graph is evaluated: a tensor depends on the inputs or on a weight; an array is known already (shapes and what
is computed from them, small constants). Known values never become operations of the compiled network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_rt.core.errors import TargetError

Array = NDArray[Any]
Known: TypeAlias = Array
Value: TypeAlias = Tensor | Known


@dataclass(frozen=True, kw_only=True, slots=True)
class Node:
    """A node as its operator sees it.

    Args:
        operator: ONNX's name of it, or one of ours for several nodes that were recognised as one.
        inputs: names of values, empty for an optional one that is left out.
        attributes: as the graph gives them; operators know their own defaults.
        proto: the ONNX node, None for ours.
    """

    operator: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    proto: Any = None

    def attribute(self, name: str, otherwise: Any = None) -> Any:
        """An attribute; text as `str`, absent ones as `otherwise`."""
        value = self.attributes.get(name, otherwise)
        return value.decode() if isinstance(value, bytes) else value

    def unsupported(self, what: str) -> TargetError:
        """The refusal of this node: `what` says which part of it."""
        return TargetError(
            f"the graph has a {self.operator} ({self.name or self.outputs[0]}) that inductor targets do not take: {what}",
            code="operator-unsupported",
            hint="choose another target, or report this with the network's configuration",
            details={"operator": self.operator, "node": self.name or self.outputs[0]},
        )

    def known(self, value: Value | None, what: str) -> Array:
        """`value` if it is known while translating.

        Raises:
            TargetError: it depends on the inputs of the network.
        """
        if isinstance(value, np.ndarray):
            return value
        raise self.unsupported(f"its {what} is not a constant")

    def integers(self, value: Value | None, what: str) -> list[int]:
        """A known value as a list of integers."""
        return [int(item) for item in np.ravel(self.known(value, what))]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One evaluation of a node.

    Args:
        inputs: None where an optional one is left out.
        tensor: makes a tensor of a value, a known one as a constant of the network.
    """

    node: Node
    inputs: tuple[Value | None, ...]
    tensor: Callable[[Value], Tensor]

    def __len__(self) -> int:
        return len(self.inputs)

    def value(self, index: int) -> Value | None:
        """An input as it is, None where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else None

    def __getitem__(self, index: int) -> Tensor:
        """An input as a tensor."""
        value = self.inputs[index]
        assert value is not None, f"{self.node.operator} lacks input {index}"  # the checker of ONNX has passed
        return self.tensor(value)

    def optional(self, index: int) -> Tensor | None:
        """An input as a tensor, None where it is left out."""
        return None if self.value(index) is None else self[index]

    def operands(self) -> list[Tensor | float | int | bool]:
        """All inputs, known scalars as Python numbers: they stand in the text of the kernel then."""
        rank = max((value.ndim for value in self.inputs if isinstance(value, Tensor)), default=0)
        return [
            value.item() if isinstance(value, np.ndarray) and value.size == 1 and value.ndim <= rank else self[index]
            for index, value in enumerate(self.inputs)
        ]


Operator = Callable[[Call], "Tensor | tuple[Tensor, ...]"]
"""Evaluates a node with torch operations."""


def torch_tensor(array: Array) -> Tensor:
    """An array of any type that ONNX has, as a tensor of its own; bfloat16 arrays are those of ml_dtypes."""
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    return torch.from_numpy(np.array(array, order="C"))
