"""Does a target have every operator of a graph? If not: which one, where, and what would help.

What belongs to no standard is found in the graph; what one compiler does not know, the compiler itself says, which no list of
ours could keep up with. Compilers name operators, and not always the node: the graph has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from distill_rt.core.errors import TargetError
from distill_rt.core.optional import require
from distill_rt.export.model_file import load_model

if TYPE_CHECKING:
    import onnx_ir as ir

REMOVED_BY: Mapping[str, str] = {"GroupNormalization": "decompose-group-norm/1"}
"""Operator -> the pass that replaces it."""


def check_operators(model: ir.Model, target: str) -> None:
    """Refuse a graph with an operator that is not ONNX's own.

    Args:
        target: for the message.

    Raises:
        TargetError: names the first such operator, its node, and the pass that could remove it.
    """
    onnx = require("onnx", extra="cpu")
    opset = model.opset_imports.get("", 0)
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            raise _lacking(node, target, f"it belongs to the domain {node.domain!r}, which only some runtimes have")
        if not onnx.defs.has(node.op_type, opset, ""):
            raise _lacking(node, target, f"opset {opset} has no such operator")


def with_node(error: TargetError, graph: Path, target: str) -> TargetError:
    """The error of a compiler that lacks an operator (`details["operators"]` names some), with the node and the pass that
    could remove it; any other error as it is.
    """
    operators = error.details.get("operators", ())
    if not operators or graph.suffix != ".onnx":
        return error
    node = next((node for node in load_model(graph).graph if node.op_type in operators), None)
    return error if node is None else _lacking(node, target, f"{target} has no such operator ({error.message})")


def _lacking(node: ir.Node, target: str, reason: str) -> TargetError:
    remover = REMOVED_BY.get(node.op_type)
    return TargetError(
        f"the graph cannot be compiled for {target}: operator {node.op_type} at node {node.name or 'unnamed'}: {reason}",
        code="operator-unsupported",
        hint=f"the pass {remover} replaces it: add it to the backend's list"
        if remover
        else "no pass of this version replaces it: choose another target, or change the network",
        details={"operator": node.op_type, "node": node.name, "pass": remover},
    )
