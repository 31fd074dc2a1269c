"""Does a target have every operator of a graph? If not: which one, where, and what would help."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from distill_rt.core.errors import TargetError
from distill_rt.core.optional import require

if TYPE_CHECKING:
    import onnx_ir as ir

REMOVED_BY: Mapping[str, str] = {"GroupNormalization": "decompose-group-norm/1"}
"""Operator -> the pass that replaces it."""


def check_operators(model: ir.Model, target: str, lacks: Collection[str] = ()) -> None:
    """Refuse a graph with an operator that the target does not have.

    Args:
        target: for the message.
        lacks: operators of the default domain that its compiler does not know.

    Raises:
        TargetError: names the first such operator, its node, and the pass that could remove it.
    """
    onnx = require("onnx", extra="cpu")
    opset = model.opset_imports.get("", 0)
    for node in model.graph:
        if node.domain not in ("", "ai.onnx"):
            reason = f"it belongs to the domain {node.domain!r}, which only some runtimes have"
        elif not onnx.defs.has(node.op_type, opset, ""):
            reason = f"opset {opset} has no such operator"
        elif node.op_type in lacks:
            reason = f"{target} has no such operator"
        else:
            continue
        remover = REMOVED_BY.get(node.op_type)
        raise TargetError(
            f"the graph cannot be compiled for {target}: operator {node.op_type} at node {node.name or 'unnamed'}: {reason}",
            code="operator-unsupported",
            hint=f"the pass {remover} replaces it: add it to the backend's list"
            if remover
            else "no pass of this version replaces it: choose another target, or change the network",
            details={"operator": node.op_type, "node": node.name, "pass": remover},
        )
