"""Rows of a step table, guidance and the way to pixels as ONNX operators.

The same arithmetic in the same order as `distill_rt.core.table.run_table`, `distill_rt.core.guidance.combine_guidance` and
`distill_rt.kernels.reference.to_uint8` in float32; terms with the weight 0 and factors of 1 are left out.

Legend: B images, N evaluations per network call, C channels, H x W pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from distill_rt.core.table import Row
from distill_rt.export.passes.writer import GraphWriter

if TYPE_CHECKING:
    import onnx_ir as ir


UINT8 = 2
"""onnx.TensorProto.UINT8."""


@dataclass(slots=True)
class State:
    """What moves from row to row: the state, the last predictions (newest first) and the anchor."""

    x: ir.Value
    history: list[ir.Value] = field(default_factory=list)
    anchor: ir.Value | None = None


def scaled(graph: GraphWriter, factor: float, value: ir.Value) -> ir.Value:
    """``factor * value``; the value itself for 1."""
    result: ir.Value = value if np.float32(factor) == 1 else graph.op("Mul", value, graph.constant(factor))
    return result


def run_row(
    graph: GraphWriter,
    row: Row,
    state: State,
    F: ir.Value | None,
    z: ir.Value | None,
    *,
    num_elements: int,
    keeps_x0: bool,
) -> State:
    """The state after a row.

    Args:
        F: guided output of its network; None if it calls none.
        z: unit noise; None if it draws none.
        num_elements: of one image.
        keeps_x0: whether a later row weights predictions.
    """
    x, terms = state.x, []
    x0: ir.Value | None = None
    if F is not None and row.is_affine:
        a, b, _ = row.folded()
        terms += [(a, x), (b, F)]
        x0 = _predict_x0(graph, row, x, F, num_elements) if keeps_x0 else None
    elif F is not None:
        x0 = _predict_x0(graph, row, x, F, num_elements)
        terms += [(row.r, x), (row.g, x0), (row.f, F)]
    else:
        terms += [(row.r, x)]
    terms += zip((row.h1, row.h2, row.h3), state.history, strict=False)
    if state.anchor is not None:
        terms += [(row.k, state.anchor)]
    if z is not None:
        terms += [(row.n, z)]
    return State(
        x=_sum(graph, terms, otherwise=x),
        history=state.history if x0 is None else [x0, *state.history][:3],
        anchor=x if row.set_anchor else state.anchor,
    )


def combine_guidance(graph: GraphWriter, F_N: ir.Value, w_B: ir.Value, *, rescale: float) -> ir.Value:
    """``F_u + w (F_c - F_u)`` of [uncond, cond], with the rescale of Lin et al. 2023 if it is not 0."""
    F_u, F_c = graph.op("Split", F_N, arity=2, axis=0, num_outputs=2)
    w = graph.op("Unsqueeze", w_B, graph.constant([1, 2, 3], np.int64))
    F: ir.Value = graph.op("Add", F_u, graph.op("Mul", w, graph.op("Sub", F_c, F_u)))
    if not rescale:
        return F
    scale = graph.op("Div", _std(graph, F_c), _std(graph, F))
    factor = graph.op("Add", scaled(graph, rescale, scale), graph.constant(1.0 - rescale))
    result: ir.Value = graph.op("Mul", F, factor)
    return result


def to_pixels(graph: GraphWriter, x_BCHW: ir.Value) -> ir.Value:
    """uint8 (B, H, W, C): ``(x + 1) * 127.5`` rounded half to even, clamped to 0..255, NaN -> 0."""
    value = graph.op("Mul", graph.op("Add", x_BCHW, graph.constant(1.0)), graph.constant(127.5))
    zero = graph.constant(0.0)
    value = graph.op("Where", graph.op("Greater", value, zero), value, zero)  # NaN is not above zero
    value = graph.op("Round", graph.op("Min", value, graph.constant(255.0)))
    # The conversion last: transposing bytes moves a quarter of what transposing floats does, but backends without a
    # byte transpose would convert back and forth.
    pixels: ir.Value = graph.op("Cast", graph.op("Transpose", value, perm=[0, 2, 3, 1]), to=UINT8)
    return pixels


def _sum(graph: GraphWriter, terms: list[tuple[float, ir.Value]], otherwise: ir.Value) -> ir.Value:
    """The weighted sum; zeros like `otherwise` if every weight is 0."""
    total: ir.Value | None = None
    for weight, value in terms:
        if weight:
            term = scaled(graph, weight, value)
            total = term if total is None else graph.op("Add", total, term)
    return graph.op("Mul", otherwise, graph.constant(0.0)) if total is None else total


def _predict_x0(graph: GraphWriter, row: Row, x: ir.Value, F: ir.Value, num_elements: int) -> ir.Value:
    x0 = _sum(graph, [(row.p, x), (row.q, F)], otherwise=x)
    if row.clip is not None:
        x0 = graph.op("Clip", x0, graph.constant(-row.clip), graph.constant(row.clip))
    elif row.threshold_ratio is not None:
        bound = _threshold(graph, row, x0, num_elements)
        x0 = graph.op("Div", graph.op("Min", graph.op("Max", x0, graph.op("Neg", bound)), bound), bound)
    return x0


def _threshold(graph: GraphWriter, row: Row, x0: ir.Value, num_elements: int) -> ir.Value:
    """The quantile of |x0| per image, between neighbours as `numpy.quantile` does, limited to [1, threshold_max]."""
    assert row.threshold_ratio is not None
    position = row.threshold_ratio * (num_elements - 1)
    below = min(math.floor(position), num_elements - 1)
    flat = graph.op("Abs", graph.op("Flatten", x0, axis=1))
    largest, _ = graph.op("TopK", flat, graph.constant([num_elements - below], np.int64), arity=2, axis=1)

    def at(index: int) -> ir.Value:
        value: ir.Value = graph.op("Gather", largest, graph.constant([num_elements - 1 - index], np.int64), axis=1)
        return value

    low, high = at(below), at(min(below + 1, num_elements - 1))
    quantile = graph.op("Add", low, scaled(graph, position - below, graph.op("Sub", high, low)))
    bound = graph.op("Clip", quantile, graph.constant(1.0), graph.constant(row.threshold_max))
    result: ir.Value = graph.op("Unsqueeze", bound, graph.constant([2, 3], np.int64))
    return result


def _std(graph: GraphWriter, F: ir.Value) -> ir.Value:
    axes = graph.constant([1, 2, 3], np.int64)
    deviation = graph.op("Sub", F, graph.op("ReduceMean", F, axes, keepdims=1))
    result: ir.Value = graph.op("Sqrt", graph.op("ReduceMean", graph.op("Mul", deviation, deviation), axes, keepdims=1))
    return result
