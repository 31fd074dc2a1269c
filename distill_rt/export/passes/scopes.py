"""Which module of the network a node of a trajectory came from, and the values that enter and leave a module.

The exporter writes the chain of modules into every node (``pkg.torch.onnx.name_scopes``), and copies keep it; the row stands
in the node's name (``row3/...``).
"""

from __future__ import annotations

import ast
import re
from typing import TYPE_CHECKING

from distill_rt.core.errors import UsageError

if TYPE_CHECKING:
    import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
_DICT_ACCESS = re.compile(r"\.__dict__\['_modules'\]\['([^']+)'\]")
"""How torch's exporter names modules that it reached through a module's dictionary."""


def modules_of(node: ir.Node) -> tuple[str, ...]:
    """Modules that a node is part of, outermost first, such as ``("backbone", "backbone.up_blocks.0")``."""
    text = node.metadata_props.get(SCOPES)
    chain = ast.literal_eval(text) if text else []
    return tuple(_DICT_ACCESS.sub(r".\1", name) for name in chain[:-1] if name)  # the last one names the node itself


class ModuleRow:
    """The modules of one row of a trajectory.

    Args:
        graph: of a trajectory that nothing has rewritten since it was unrolled: sharing moves nodes between rows.
        row: index into the step table.
    """

    def __init__(self, graph: ir.Graph, row: int) -> None:
        self.row = row
        self._nodes: dict[str, list[ir.Node]] = {}
        for node in graph:
            if (node.name or "").startswith(f"row{row}/"):
                for module in modules_of(node):
                    self._nodes.setdefault(module, []).append(node)

    @property
    def names(self) -> list[str]:
        """Every module that has nodes in this row, in the order in which they start."""
        return list(self._nodes)

    def nodes(self, module: str) -> list[ir.Node]:
        """Nodes of a module, in order.

        Raises:
            UsageError: this row has no such module.
        """
        if module not in self._nodes:
            raise UsageError(
                f"row {self.row} has no module {module!r}",
                code="module-unknown",
                hint=f"modules: {', '.join(self.names) or 'none (the graph names no modules)'}",
            )
        return self._nodes[module]

    def output(self, module: str) -> ir.Value:
        """What a module returns: the last of its values that something outside reads."""
        nodes = self.nodes(module)
        inside = set(nodes)
        for node in reversed(nodes):
            for value in reversed(node.outputs):
                if value.is_graph_output() or any(user not in inside for user, _ in value.uses()):
                    return value
        raise UsageError(f"nothing outside of {module!r} reads it in row {self.row}", code="module-unused")

    def input(self, module: str) -> ir.Value:
        """What a module adds to: the first value from outside with the shape of its output.

        Raises:
            UsageError: it has none, so that there is no change between input and output.
        """
        nodes, output = self.nodes(module), self.output(module)
        inside = set(nodes)
        for node in nodes:
            for value in node.inputs:
                if value is None or value.is_initializer() or value.producer() in inside:
                    continue
                if value.shape is not None and value.shape == output.shape and value.dtype == output.dtype:
                    return value
        raise UsageError(
            f"{module!r} has no input of the shape of its output, {output.shape}: no change can be reused",
            code="module-no-delta",
            hint="use the map identity",
        )
