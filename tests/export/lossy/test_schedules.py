"""Which wires schedules draw: rows of one network, budgets that hold, the cheapest harm first."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
import pytest
from handmade import make_ir, make_spec
from scoped import MODULES, scoped_model

from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import NO_NETWORK, Row, StepTable
from distill_rt.export.lossy.schedules import calling_rows, deep_cache, greedy
from distill_rt.export.passes.cost import count_macs
from distill_rt.export.passes.reuse import Reuse, reuse_pass
from distill_rt.export.passes.unroll import unroll

STEPS = 4
CONV_IN, CONV_OUT = 16 * 16 * 9, 16 * 16 * 9
"""Multiply-accumulates: 16 pixels, 16 channels from or to one, 3 x 3."""


def unrolled(spec: StudentSpec) -> ir.Model:
    return unroll({"network0": make_ir(scoped_model(spec))}, spec, STEPS)


def test_only_rows_of_the_same_network_reuse() -> None:
    rows = [Row(net_id=1), Row(net_id=0), Row(net_id=NO_NETWORK), Row(net_id=1), Row(net_id=0), Row(net_id=0)]
    assert calling_rows(StepTable(rows=tuple(rows))) == [(3, 0), (4, 1), (5, 4)]


def test_deep_cache_refreshes_every_second_call() -> None:
    spec = make_spec("none")
    (schedule,) = deep_cache(unrolled(spec), spec.plans[STEPS])
    name = "net.up_blocks.0"
    assert schedule.wires == (Reuse(module=name, row=1, source=0), Reuse(module=name, row=3, source=2))
    (every_third,) = deep_cache(unrolled(spec), spec.plans[STEPS], every=3)
    assert [(wire.row, wire.source) for wire in every_third.wires] == [(1, 0), (2, 1)]


def test_cost_of_a_graph() -> None:
    spec = make_spec("none")
    model = unrolled(spec)
    per_row = count_macs(model) // STEPS
    assert CONV_IN + CONV_OUT < per_row < 1.2 * (CONV_IN + CONV_OUT)  # and the embeddings
    wired = reuse_pass([Reuse(module="net.up_blocks.0", row=1, source=0)])(model)
    assert count_macs(model) - count_macs(wired) >= CONV_IN
    both = make_spec("cfg")
    assert 2 * CONV_IN * STEPS < count_macs(unrolled(both)) < 2.5 * count_macs(model)


@pytest.mark.parametrize("budget", [0.13, 0.3])
def test_greedy_takes_the_least_sensitive_within_its_budget(budget: float) -> None:
    spec = make_spec("none")
    model = unrolled(spec)
    price = {2: 0.1, 3: 0.2, 1: 5.0}

    def sensitivity(wire: Reuse) -> float:
        return price[wire.row] if wire.module == MODULES["h3"] else 100.0

    (schedule,) = greedy(model, spec.plans[STEPS], sensitivity, (budget,))
    assert [wire.row for wire in schedule.wires] == [2, 3][: 1 if budget < 0.2 else 2]
    assert {wire.module for wire in schedule.wires} == {MODULES["h3"]}
    saved = 1 - count_macs(reuse_pass(schedule.wires)(model)) / count_macs(model)
    assert saved <= budget + 0.01


def test_nothing_to_reuse_in_one_evaluation() -> None:
    spec = make_spec("none")
    table = dataclasses.replace(spec.plans[STEPS], rows=spec.plans[STEPS].rows[:1])
    assert list(deep_cache(unrolled(spec), table)) == []
