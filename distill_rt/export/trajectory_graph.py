"""The trajectory compiler: graphs of one step and a plan of the contract -> one graph of all steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from distill_rt.core.spec import StudentSpec
from distill_rt.export.passes import Pass, identities, run_passes
from distill_rt.export.passes.fold import fold_given
from distill_rt.export.passes.share import remove_dead, share_subexpressions
from distill_rt.export.passes.unroll import UNROLL_VERSION, unroll

if TYPE_CHECKING:
    import onnx_ir as ir

SHARE = Pass(name="share-subexpressions", version=1, function=share_subexpressions)
FOLD = Pass(name="fold-given", version=1, function=fold_given)
REMOVE_DEAD = Pass(name="remove-dead", version=1, function=remove_dead)
TRAJECTORY_PASSES = (SHARE, FOLD, SHARE, REMOVE_DEAD)
"""Sharing first: what all rows have in common is then folded once; and again, for what folding has made equal."""


def trajectory_model(
    components: Mapping[str, ir.Model], spec: StudentSpec, steps: int, *, pixels: bool = True
) -> ir.Model:
    """All rows of a plan as one graph, see `distill_rt.export.passes.unroll.unroll` for its inputs and outputs.

    Args:
        components: the graphs of `spec.components()`; they stay as they are, and weights are shared with them.
        steps: a key of `spec.plans`.
    """
    return run_passes(unroll(components, spec, steps, pixels=pixels), TRAJECTORY_PASSES)


def trajectory_recipe() -> str:
    """What made a trajectory graph, for the bundle's manifest."""
    return " ".join([f"unroll/{UNROLL_VERSION}", *identities(TRAJECTORY_PASSES)])
