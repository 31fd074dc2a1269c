"""At which times students of re-noising plans are evaluated."""

from __future__ import annotations

import pytest

from distill_rt.core.errors import UsageError
from distill_rt.core.process import NoiseProcess
from distill_rt.core.table import StepTable
from distill_rt.training.consistency import max_ratio_time, renoise_plans
from distill_rt.training.methods import METHODS
from distill_rt.training.recipes import RECIPES

TEACHER = RECIPES["grid25-teacher"]().spec
CHOOSE = ("consistency", "lcm", "ect", "consistency_training", "scm")


def times_of(process: NoiseProcess, table: StepTable) -> list[float]:
    return [float(process.t_from_model_time(row.time)) for row in table.rows]


@pytest.mark.parametrize("name", CHOOSE)
def test_fresh_noise_is_added_late(name):
    """The times after the first are those of (1 - i / n)^2, in every plan."""
    start = max_ratio_time(TEACHER.process) if name in ("ect", "consistency_training") else 1.0
    plans = METHODS[name]().contract(TEACHER).plans
    assert times_of(TEACHER.process, plans[1]) == pytest.approx([start])
    assert times_of(TEACHER.process, plans[2]) == pytest.approx([start, 0.25 * start])
    assert times_of(TEACHER.process, plans[4]) == pytest.approx([start * t for t in (1.0, 0.5625, 0.25, 0.0625)])


@pytest.mark.parametrize("name", CHOOSE)
def test_the_power_can_be_chosen(name):
    plans = METHODS[name](plan_power=1.0, steps=2).contract(TEACHER).plans
    start, middle = times_of(TEACHER.process, plans[2])
    assert middle == pytest.approx(0.5 * start)
    for power in (0.0, -1.0, float("nan")):
        with pytest.raises(UsageError, match="plan_power must be positive"):
            METHODS[name](plan_power=power).contract(TEACHER)


def test_what_trains_on_the_states_of_its_plan_keeps_their_times():
    """`rcm` matches at the states that `dmd2` visits, `ladd` and `dmd2` at their own."""
    uniform = renoise_plans(TEACHER, 4)[4]
    assert times_of(TEACHER.process, uniform) == pytest.approx([1.0, 0.75, 0.5, 0.25])
    for name, settings in {"rcm": {}, "dmd2": {"start": 1.0}, "ladd": {"start": 1.0}}.items():
        assert METHODS[name](steps=4, **settings).contract(TEACHER).plans[4] == uniform


def test_ladd_offers_the_plans_whose_levels_it_trains():
    spec = RECIPES["grid25-teacher"]().spec
    assert {steps: METHODS["ladd"](steps=steps).contract(spec).steps for steps in (3, 4, 6)} == {
        3: (1, 3),
        4: (1, 2, 4),
        6: (1, 2, 6),
    }
