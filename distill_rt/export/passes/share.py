"""What the rows of an unrolled graph have in common is computed once, and what nobody needs goes.

Copies of one network multiply the same inputs by the same weights wherever the state is not involved: label embeddings, key and
value projections of the text, transposed weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir


def share_subexpressions(model: ir.Model) -> ir.Model:
    """Nodes with the same operator, inputs and attributes become one."""
    from onnx_ir.passes import common

    common.CommonSubexpressionEliminationPass()(model)
    return model


def remove_dead(model: ir.Model) -> ir.Model:
    """Nodes and initializers without an effect on the outputs go; the inputs stay."""
    from onnx_ir.passes import common

    common.IdentityEliminationPass()(model)
    common.RemoveUnusedNodesPass()(model)
    return model
