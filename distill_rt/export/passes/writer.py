"""Write a graph value by value: operators, constants that exist once, and copies of other graphs.

Legend: B images, N evaluations per network call (2B under cfg).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.errors import ArtifactError
from distill_rt.core.optional import require
from distill_rt.core.spec import TensorSpec

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]

EXACT = "distill_rt.exact"
"""Metadata of nodes whose arithmetic stays float32 at every precision: the step table and the way to pixels."""


def declare(value: ir.Value, tensor: TensorSpec) -> None:
    """Give a value the type and the shape of a tensor."""
    import onnx_ir as ir

    types = {"float32": ir.DataType.FLOAT, "int64": ir.DataType.INT64, "uint8": ir.DataType.UINT8}
    value.type, value.shape = ir.TensorType(types[tensor.dtype]), ir.Shape(tensor.shape)


class GraphWriter:
    """Collects the nodes and initializers of one graph.

    Args:
        inputs: the graph's inputs.
    """

    def __init__(self, inputs: Sequence[ir.Value]) -> None:
        self._ir = require("onnx_ir", extra="export")
        self.inputs = list(inputs)
        self.nodes: list[ir.Node] = []
        self.initializers: dict[str, ir.Value] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._num_named: dict[str, int] = {}
        self.scope = ""
        """Prefix of names to come, such as ``row0/``."""

    def op(
        self, kind: str, *inputs: ir.Value | None, like: TensorSpec | None = None, arity: int = 1, **attributes: Any
    ) -> Any:
        """A node of the default domain, marked `EXACT`; its output, or the tuple of its `arity` outputs if there are several.

        Args:
            like: type and shape of the output, where a later pass needs to know them; its name does not count.
        """
        name = self._name(kind.lower())
        node = self._ir.node(kind, inputs, attributes, num_outputs=arity, name=name, metadata_props={EXACT: "1"})
        for i, output in enumerate(node.outputs):
            output.name = name if arity == 1 else f"{name}.{i}"
            if like is not None:
                declare(output, like)
        self.nodes.append(node)
        return node.outputs[0] if arity == 1 else tuple(node.outputs)

    def constant(self, value: Any, dtype: Any = np.float32) -> ir.Value:
        """An initializer; equal values are one."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer(f"constant/{len(self._constants)}", self._ir.tensor(array))
        return self._constants[key]

    def initializer(self, name: str, tensor: Any) -> ir.Value:
        """An initializer of this name, which must be new."""
        assert name not in self.initializers, name
        kind, shape = self._ir.TensorType(tensor.dtype), self._ir.Shape(tensor.shape)
        value = self._ir.Value(name=name, type=kind, shape=shape, const_value=tensor)
        self.initializers[name] = value
        return value

    def copy(
        self, source: ir.Graph, inputs: Mapping[str, ir.Value], prefix: str, batch: str | int
    ) -> dict[str, ir.Value]:
        """The nodes of another graph on other inputs; weights are not copied but shared by all copies with this prefix.

        Args:
            inputs: value for each input of `source`, by name.
            prefix: of the names of its weights, such as ``network0.``; nodes are named after `scope`.
            batch: the first dimension in this graph, a name or a number.

        Returns:
            Its outputs by name.

        Raises:
            ArtifactError: the graph has branches or loops.
        """
        values: dict[ir.Value, ir.Value] = {value: inputs[str(value.name)] for value in source.inputs}
        for name, value in source.initializers.items():
            shared = self.initializers.get(prefix + name)
            values[value] = shared if shared is not None else self.initializer(prefix + name, value.const_value)
        for node in source:
            self.copy_node(node, values, batch)
        return {str(value.name): values[value] for value in source.outputs}

    def copy_node(self, node: ir.Node, values: dict[ir.Value, ir.Value], batch: str | int) -> None:
        """Append a copy of a node; `values` maps the values of its graph to those of this one, and learns its outputs."""
        graphs = (self._ir.AttributeType.GRAPH, self._ir.AttributeType.GRAPHS)
        if any(attribute.type in graphs for attribute in node.attributes.values()):
            raise ArtifactError(
                f"the graph has a {node.op_type} ({node.name or 'unnamed'}): branches and loops are not unrolled",
                code="trajectory-unsupported",
                hint="export with --mode step",
                details={"node": node.name, "operator": node.op_type},
            )
        copied: ir.Node = self._ir.Node(
            node.domain,
            node.op_type,
            [None if value is None else values[value] for value in node.inputs],
            list(node.attributes.values()),
            num_outputs=len(node.outputs),
            name=f"{self.scope}{node.name or node.outputs[0].name}",
            metadata_props=dict(node.metadata_props),
        )
        for old, new in zip(node.outputs, copied.outputs, strict=True):
            new.name = f"{self.scope}{old.name}" if old.name else old.name
            new.type = old.type
            new.shape = None if old.shape is None else self._rename_batch(old.shape, batch)
            values[old] = new
        self.nodes.append(copied)

    def _rename_batch(self, shape: ir.Shape, batch: str | int) -> ir.Shape:
        """Only the first dimension can be the batch; an expression of it elsewhere is left unknown."""
        dims = [
            dim if isinstance(dim, int) else batch if i == 0 and str(dim) == "B" else None
            for i, dim in enumerate(shape)
        ]
        return self._ir.Shape(dims)

    def _name(self, kind: str) -> str:
        key = f"{self.scope}table/{kind}"  # apart from the names of copied nodes
        self._num_named[key] = self._num_named.get(key, -1) + 1
        return f"{key}.{self._num_named[key]}"

    def model(self, outputs: Sequence[ir.Value], *, name: str, opset: int, ir_version: int) -> ir.Model:
        """The finished model."""
        graph = self._ir.Graph(
            self.inputs,
            list(outputs),
            nodes=self.nodes,
            initializers=list(self.initializers.values()),
            opset_imports={"": opset},
            name=name,
        )
        model: ir.Model = self._ir.Model(graph, ir_version=ir_version, producer_name="distill-rt")
        return model
