"""Stitched contracts: the small network in the first evaluations, and only students that agree."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from contracts import contract, table

from distill_rt.core.errors import UsageError
from distill_rt.core.process import RectifiedFlow
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import NetworkSpec
from distill_rt.core.stitch import stitch_contracts
from distill_rt.core.table import NO_NETWORK, Row, StepTable

SMALL = (NetworkSpec(kind="mlp", config={"width": 8}),)


def both(**changes: Any) -> tuple[Any, Any]:
    big = contract(plans={n: table(n) for n in (1, 2, 4)}, default_steps=4)
    return big, dataclasses.replace(big, **{"networks": SMALL, **changes})


@pytest.mark.parametrize("first", [1, 2, 3])
def test_the_first_evaluations_are_the_small_ones(first: int) -> None:
    big, small = both()
    spec = stitch_contracts(big, small, first=first)
    assert spec.networks == (*big.networks, *SMALL)
    assert spec.steps == tuple(n for n in (1, 2, 4) if n > first)
    for steps, plan in spec.plans.items():
        assert [row.net_id for row in plan.rows] == [1] * first + [0] * (steps - first)
        assert [dataclasses.replace(row, net_id=0) for row in plan.rows] == list(big.plans[steps].rows)
    assert spec.network_inputs() == big.network_inputs()


def test_rows_without_a_network_do_not_count() -> None:
    plan = StepTable(rows=(Row(), Row(net_id=NO_NETWORK), Row(), Row()))
    big, small = (dataclasses.replace(spec, plans={3: plan}, default_steps=3) for spec in both())
    assert [row.net_id for row in stitch_contracts(big, small, first=2).plans[3].rows] == [1, NO_NETWORK, 1, 0]


def test_plans_that_only_one_has_are_left_out() -> None:
    big, small = both()
    other = ddim(big.process, big.parameterization, [0.9, 0.4])
    small = dataclasses.replace(small, plans={2: other, 4: small.plans[4]})
    assert stitch_contracts(big, small, first=1).steps == (4,)


@pytest.mark.parametrize(
    ("changes", "first", "match"),
    [
        ({"process": RectifiedFlow()}, 1, "differ in process"),
        ({"sample_shape": (9, 8, 8)}, 1, "differ in sample_shape"),
        ({"plans": {8: table(8)}, "default_steps": 8}, 1, "the same are none"),
        ({}, 4, "no plan that both students have"),
        ({}, 0, "at least 1"),
        ({"networks": SMALL * 2}, 1, "one network each"),
    ],
)
def test_students_that_do_not_fit_are_refused(changes: dict[str, Any], first: int, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        stitch_contracts(*both(**changes), first=first)
