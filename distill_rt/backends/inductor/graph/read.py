"""ONNX file -> nodes and initializers, plain."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from distill_rt.backends.inductor.graph.node import Array, Node
from distill_rt.core.errors import TargetError
from distill_rt.core.optional import require

NEWEST_OPSET = 22
"""Of the operators in `operators`; graphs are exported with 21."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Graph:
    """Nodes in topological order."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    initializers: dict[str, Array]

    def without_unused(self) -> Graph:
        """Only what the outputs need."""
        needed, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if needed & set(node.outputs):
                needed |= set(node.inputs)
                kept.append(node)
        initializers = {name: array for name, array in self.initializers.items() if name in needed}
        return replace(self, nodes=tuple(reversed(kept)), initializers=initializers)


def read_graph(path: Path) -> Graph:
    """Read a graph with its weights.

    Raises:
        TargetError: operators of another domain or a newer opset.
    """
    onnx = require("onnx", extra="inductor")
    model = onnx.load(str(path))
    opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=0)
    foreign = sorted({node.domain for node in model.graph.node} - {"", "ai.onnx"})
    if opset > NEWEST_OPSET or foreign:
        what = f"operators of {', '.join(foreign)}" if foreign else f"opset {opset}, newer than {NEWEST_OPSET}"
        raise TargetError(
            f"{path.name} has {what}, which inductor targets do not take",
            code="operator-unsupported",
            hint="choose another target, or export it again with this distill-rt",
        )
    return Graph(
        nodes=tuple(
            Node(
                operator=node.op_type,
                name=node.name,
                inputs=tuple(node.input),
                outputs=tuple(node.output),
                attributes={item.name: onnx.helper.get_attribute_value(item) for item in node.attribute},
                proto=node,
            )
            for node in model.graph.node
        ),
        inputs=tuple(value.name for value in model.graph.input),
        outputs=tuple(value.name for value in model.graph.output),
        initializers={
            item.name: onnx.numpy_helper.to_array(item, base_dir=str(path.parent)) for item in model.graph.initializer
        },
    )
