"""The passes that a backend wants, applied to a copy of the graph at compile time.

The bundle keeps the graph as exported; what is faster depends on the compiler, so it does not belong there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from distill_rt.export.model_file import load_model, save_model
from distill_rt.export.passes import Pass, check_operators, run_passes
from distill_rt.export.passes.group_norm import decompose_group_norm
from distill_rt.export.passes.group_norm_moments import group_norm_moments
from distill_rt.export.passes.projections import merge_projections
from distill_rt.export.passes.split_projections import split_projections
from distill_rt.export.passes.upsampled_conv import fold_upsampling

COMPILE_PASSES: Mapping[str, Pass] = {
    step.identity: step
    for step in (
        Pass(name="decompose-group-norm", version=1, function=decompose_group_norm),
        Pass(name="fold-upsampling", version=1, function=fold_upsampling),
        Pass(name="group-norm-moments", version=1, function=group_norm_moments),
        Pass(name="merge-projections", version=1, function=merge_projections),
        Pass(name="split-projections", version=1, function=split_projections),
    )
}
"""Passes by identity, the names that backends list (`Backend.rewrites`)."""


def rewrite_graph(source: Path, names: Sequence[str], destination: Path, *, target: str = "") -> Path:
    """Apply passes to a graph file, and check that every operator that is left is ONNX's own.

    Args:
        names: identities of passes.
        target: for messages.

    Returns:
        `destination`, or `source` if no pass changed anything.

    Raises:
        TargetError: an operator of another domain, or of none.
    """
    model = load_model(source)
    rewritten = run_passes(model, [COMPILE_PASSES[name] for name in names])
    check_operators(rewritten, target)
    if [node.op_type for node in rewritten.graph] == [node.op_type for node in model.graph]:
        return source
    save_model(rewritten, destination)
    return destination
