"""PTQD: what an engine's arithmetic does to every network output of a row, divided out in the step table.

He et al. 2023 (arXiv 2305.10657), sections 4.1 and 4.2: the error of a quantised network correlates with its output,
``F_q = (1 + k) F + mu + n`` with k per step and mu per step and channel. Subtracting mu and dividing by 1 + k leaves the
uncorrelated n. Here 1 + k divides the columns q and f of the table, which costs nothing; -mu is one constant per row.

Legend: S network calls of a plan, N evaluations, C channels, H x W.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError
from distill_rt.core.optional import require
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import StepTable
from distill_rt.export.passes.constants import add_initializer
from distill_rt.export.passes.interface import Pass
from distill_rt.export.passes.writer import EXACT
from distill_rt.export.trajectory import Evaluate, run_plan

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]

PTQD_VERSION = 1
SMALLEST_FACTOR = 0.25
"""An engine that answers with less than a quarter of the student's output has more wrong with it than its rounding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Correction:
    """The correlated error of every network call of a plan.

    Args:
        k: (S,), relative.
        mu: (S, C), in units of the network's output.
        unexplained: (S,), root mean square of what is left, relative to that of the error; 1 means that nothing correlates.
    """

    k: tuple[float, ...]
    mu: tuple[tuple[float, ...], ...]
    unexplained: tuple[float, ...]


def fit_correction(F: Sequence[Array], F_q: Sequence[Array]) -> Correction:
    """Least squares for ``F_q = (1 + k) F + mu``, one k per call and one mu per call and channel.

    Args:
        F, F_q: per call, outputs (N, C, H, W) of the student and of the engine for the same inputs.

    Raises:
        UsageError: an output of the student is constant, or the engine's has next to nothing of it.
    """
    k, mu, unexplained = [], [], []
    for call, (exact, got) in enumerate(zip(F, F_q, strict=True)):
        x, y = exact.astype(np.float64), got.astype(np.float64)
        mean_x, mean_y = x.mean(axis=(0, 2, 3)), y.mean(axis=(0, 2, 3))
        centred = x - mean_x[:, None, None]
        energy = float((centred**2).sum())
        factor = float((centred * (y - mean_y[:, None, None])).sum()) / energy if energy else 0.0
        if factor < SMALLEST_FACTOR:
            raise UsageError(
                f"call {call}: the engine's output holds {factor:.2g} of the student's; there is nothing to correct",
                code="ptqd-unrelated",
                hint="the engine is broken: compile it in fp32",
            )
        bias = mean_y - factor * mean_x
        before = float(np.sqrt(((y - x) ** 2).mean()))
        left = float(np.sqrt(((y - factor * x - bias[:, None, None]) ** 2).mean()))
        k.append(factor - 1)
        mu.append(tuple(bias.tolist()))
        unexplained.append(left / before if before else 1.0)
    return Correction(k=tuple(k), mu=tuple(mu), unexplained=tuple(unexplained))


def record_outputs(
    spec: StudentSpec,
    student: Evaluate,
    engine: Evaluate,
    *,
    steps: int,
    guidance: float | Array,
    seeds: Sequence[int],
    labels: Sequence[int] | None = None,
    text: Array | None = None,
    null_text: Array | None = None,
) -> tuple[list[Array], list[Array]]:
    """Outputs of both networks at the states of the student's own trajectories, one pair of arrays per call."""
    F: list[Array] = []
    F_q: list[Array] = []

    def both(net_id: int, inputs: Any) -> Array:
        F.append(np.array(student(net_id, inputs)))
        F_q.append(np.array(engine(net_id, inputs)))
        return F[-1]

    run_plan(spec, both, steps=steps, guidance=guidance, seeds=seeds, labels=labels, text=text, null_text=null_text)
    return F, F_q


def corrected_table(table: StepTable, correction: Correction) -> StepTable:
    """The table for outputs without their mu: q and f divided by 1 + k.

    Raises:
        ValueError: not one k per network call.
    """
    if len(correction.k) != table.num_evaluations:
        raise ValueError(f"{table.num_evaluations} network calls cannot have {len(correction.k)} factors")
    factors = iter(correction.k)
    rows = []
    for row in table.rows:
        if row.calls_network:
            scale = 1.0 + next(factors)
            row = dataclasses.replace(row, q=row.q / scale, f=row.f / scale)
        rows.append(row)
    return dataclasses.replace(table, rows=tuple(rows))


def remove_bias_pass(table: StepTable, correction: Correction) -> Pass:
    """``-mu`` for every row's network output, as a pass on an unrolled trajectory."""
    calls = [i for i, row in enumerate(table.rows) if row.calls_network]
    bias = {str(i): [-value for value in mu] for i, mu in zip(calls, correction.mu, strict=True)}
    return Pass(name="remove-bias", version=PTQD_VERSION, function=add_bias, settings={"bias": bias})


def add_bias(model: ir.Model, *, bias: dict[str, list[float]]) -> ir.Model:
    """Add a constant per channel to the output of the network of some rows.

    Under cfg both evaluations get it, which is the same as adding it to the guided output.

    Args:
        model: as `distill_rt.export.passes.unroll.unroll` returns it.
        bias: row -> C values.
    """
    onnx_ir = require("onnx_ir", extra="export")
    for row, values in bias.items():
        output = _network_output(model.graph, f"row{row}/")
        users = list(output.uses())
        constant = add_initializer(model.graph, f"row{row}/bias", np.asarray(values, np.float32).reshape(1, -1, 1, 1))
        node = onnx_ir.node("Add", [output, constant], name=f"row{row}/unbiased", metadata_props={EXACT: "1"})
        (result,) = node.outputs
        result.name, result.type, result.shape = node.name, output.type, output.shape
        producer = output.producer()
        assert producer is not None
        model.graph.insert_after(producer, node)
        for user, index in users:
            user.replace_input_with(index, result)
    return model


def _network_output(graph: ir.Graph, scope: str) -> ir.Value:
    """What the table of a row reads of its network: the one value of a copied node that an exact node uses."""
    found = {
        value: None
        for node in graph
        if (node.name or "").startswith(scope) and EXACT not in node.metadata_props
        for value in node.outputs
        if any(EXACT in user.metadata_props for user, _ in value.uses())
    }
    if len(found) != 1:
        raise UsageError(
            f"{scope} has {len(found)} network outputs", code="ptqd-row", hint="the plan calls no network in that row"
        )
    return next(iter(found))
