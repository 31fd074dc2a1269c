"""The verdict on constructed figures: winners enter, losers do not, noise decides nothing."""

from __future__ import annotations

import numpy as np
import pytest

from distill_rt.export.lossy.judge import Figures, judge
from distill_rt.export.lossy.measure import median_interval

RNG = np.random.default_rng(0)
SPREAD = RNG.standard_normal(16)
SPREAD -= SPREAD.mean()


def figures(name: str, time: float, distance: float, *, width: float = 0.01, spread: float = 0.02) -> Figures:
    return Figures(
        name=name,
        time_ratio=time,
        time_low=time - width,
        time_high=time + width,
        milliseconds=time,
        distance_B=distance * (1 + spread * SPREAD),
    )


FULL = figures("4 steps", 1.0, 0.01, width=0.0)
PLANS = [figures("3 steps", 0.75, 0.21), figures("2 steps", 0.5, 0.61), figures("1 step", 0.25, 1.5)]


@pytest.mark.parametrize(
    ("time", "distance", "accepted"),
    [
        (0.7, 0.1, True),  # faster than 3 steps and closer
        (0.85, 0.05, True),  # between 4 and 3 steps: the line there is at 0.13
        (0.85, 0.2, False),
        (0.7, 0.4, False),  # 3 steps are slower, but the mixture with 2 is as close
        (0.2, 1.0, True),  # faster than every plan: must be closer than the fastest
        (0.2, 1.6, False),
        (1.2, 0.005, False),  # closer, but it takes longer
        (1.0, 0.005, True),  # as PTQD: closer in the same time
        (1.0, 0.02, False),
        (0.995, 0.009, True),  # not surely faster, surely closer
        (0.85, 0.132, False),  # on the line, within the spread
    ],
)
def test_on_both_sides_of_the_plans(time: float, distance: float, accepted: bool) -> None:
    verdict = judge(figures("candidate", time, distance), FULL, PLANS)
    assert verdict.accepted == accepted, verdict


def test_the_alternative_is_on_the_line_between_plans() -> None:
    verdict = judge(figures("candidate", 0.875, 0.05, width=0.0), FULL, PLANS)
    assert verdict.alternative == pytest.approx(0.11)
    # The pessimistic end of the time counts.
    assert judge(figures("candidate", 0.865, 0.05), FULL, PLANS).alternative == pytest.approx(0.11)


def test_a_plan_that_is_slower_and_farther_helps_nobody() -> None:
    odd = figures("odd", 0.9, 3.0)
    candidate = figures("candidate", 0.85, 0.05)
    assert judge(candidate, FULL, [odd, *PLANS]) == judge(candidate, FULL, PLANS)


def test_noisy_times_and_noisy_images_do_not_enter() -> None:
    assert judge(figures("candidate", 0.9, 0.05, width=0.03), FULL, PLANS).accepted
    assert not judge(figures("candidate", 0.9, 0.05, width=0.15), FULL, PLANS).accepted
    assert not judge(figures("candidate", 0.7, 0.2, spread=1.0), FULL, PLANS).accepted


def test_without_shorter_plans_nothing_faster_can_be_compared() -> None:
    verdict = judge(figures("candidate", 0.5, 0.02), FULL, [])
    assert not verdict.accepted
    assert "no plan with fewer steps" in verdict.reason
    assert judge(figures("candidate", 1.0, 0.005), FULL, []).accepted


def test_interval_of_a_median() -> None:
    """Holds the median of the distribution in about 95 of 100 samples."""
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(1000):
        low, high = median_interval(rng.lognormal(0.0, 1.0, 31))
        inside += low <= 1.0 <= high
    assert 930 <= inside <= 990
