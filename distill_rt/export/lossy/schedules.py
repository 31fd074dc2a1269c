"""Which modules to reuse in which rows: DeepCache's fixed schedules, and the least sensitive modules of this student.

A greedy choice by measured sensitivity needs no training and, at few steps, does what Learning-to-Cache (Ma et al. 2024,
arXiv 2406.01733) trains a router for.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from distill_rt.core.table import StepTable
from distill_rt.export.passes.cost import count_macs, node_macs
from distill_rt.export.passes.reuse import Reuse, reuse_pass
from distill_rt.export.passes.scopes import ModuleRow

if TYPE_CHECKING:
    import onnx_ir as ir

UP_BLOCK = re.compile(r"(.*\bup_blocks)\.(\d+)")
MEMBER = re.compile(r".*\.(\d+|mid_block)")
"""Modules of lists, and the middle: what networks are made of."""
SMALLEST_SHARE = 0.01
"""Of a row's cost: modules with less are not worth a wire."""
BUDGETS = (0.1, 0.25)
"""Shares of the cost that the greedy choice saves; beyond a quarter nothing published holds at eight steps or fewer."""
MAX_ELEMENTS = 24
"""Sensitivities to measure; the most expensive modules first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Wires with a name."""

    name: str
    wires: tuple[Reuse, ...]


def calling_rows(table: StepTable) -> list[tuple[int, int]]:
    """Rows that call a network, each with the one before that calls the same; only these can reuse."""
    last: dict[int, int] = {}
    pairs = []
    for i, row in enumerate(table.rows):
        if row.calls_network:
            if row.net_id in last:
                pairs.append((i, last[row.net_id]))
            last[row.net_id] = i
    return pairs


def deep_cache(model: ir.Model, table: StepTable, *, every: int = 2) -> Iterator[Schedule]:
    """DeepCache (arXiv 2312.00858, section 3.2) at every cut: the output of an up-block is computed in every `every`-th call.

    Nothing for networks without up-blocks.
    """
    pairs = calling_rows(table)
    if not pairs:
        return
    names = {
        match[2]: name for name in ModuleRow(model.graph, pairs[0][0]).names if (match := UP_BLOCK.fullmatch(name))
    }
    for number, name in sorted(names.items(), key=lambda item: int(item[0])):
        if str(int(number) + 1) not in names:
            continue  # nothing stands above the last one but the output
        wires, age = [], 0
        for row, source in pairs:
            age = (age + 1) % every
            if age:
                wires.append(Reuse(module=name, row=row, source=source))
        yield Schedule(name=f"deepcache, cut above up-block {number}, every {every}", wires=tuple(wires))


def greedy(
    model: ir.Model, table: StepTable, sensitivity: Callable[[Reuse], float], budgets: Sequence[float] = BUDGETS
) -> Iterator[Schedule]:
    """The modules whose reuse moves images least for what it saves, up to a share of the cost.

    Args:
        model: the unrolled trajectory.
        sensitivity: distance of finished images with this wire alone.
        budgets: shares of all multiply-accumulates, ascending.
    """
    total = count_macs(model)
    elements = _elements(model, table)
    # Price: distance per multiply-accumulate saved.
    ranked = sorted((sensitivity(wire) / saved, i) for i, (wire, saved) in enumerate(elements))
    chosen: list[Reuse] = []
    left = total
    order = [elements[i][0] for _, i in ranked]
    for budget in budgets:
        while order and left > (1 - budget) * total:
            wire = order.pop(0)
            cost = count_macs(reuse_pass([*chosen, wire])(model))
            if cost < left and cost >= (1 - budgets[-1] - SMALLEST_SHARE) * total:
                chosen, left = [*chosen, wire], cost
        if chosen:
            yield Schedule(name=f"greedy reuse, {1 - left / total:.0%} of the cost", wires=tuple(chosen))


def _elements(model: ir.Model, table: StepTable) -> list[tuple[Reuse, int]]:
    """Wires from one row to the next that save something, with what they save."""
    total = count_macs(model)
    candidates: list[tuple[int, Reuse]] = []
    for row, source in calling_rows(table):
        modules = ModuleRow(model.graph, row)
        costs = {name: sum(map(node_macs, modules.nodes(name))) for name in modules.names if MEMBER.fullmatch(name)}
        share = SMALLEST_SHARE * total / len(table.rows)
        candidates += [
            (cost, Reuse(module=name, row=row, source=source)) for name, cost in costs.items() if cost > share
        ]
    candidates.sort(key=lambda item: -item[0])
    elements = []
    for _, wire in candidates[:MAX_ELEMENTS]:
        saved = total - count_macs(reuse_pass([wire])(model))
        if saved > 0:
            elements.append((wire, saved))
    return elements
