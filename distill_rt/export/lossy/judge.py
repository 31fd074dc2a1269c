"""Does a lossy pass earn its place? Only if no mixture of the student's own plans is as close at the same time.

Distance is that of finished images to the full plan in float32. Fewer steps of the same student cost nothing to build, so
they are what a pass has to beat. Between two plans the honest alternative is the straight line: of a run of requests, some
with one plan and the rest with the other take the time and have the mean distance of a point on it. So the alternatives at
every time are the lower convex hull of the plans.

Legend: B images.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """What was measured of one variant.

    Args:
        name: for people.
        time_ratio: median over rounds of its time divided by that of the full plan in the same round.
        time_low, time_high: 95 % interval of that median.
        milliseconds: median time of a call.
        distance_B: relative L2 to the full plan in float32, per image.
    """

    name: str
    time_ratio: float
    time_low: float
    time_high: float
    milliseconds: float
    distance_B: Array

    @property
    def distance(self) -> float:
        return float(self.distance_B.mean())


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether a candidate enters, and the distance of the best alternative in its time."""

    accepted: bool
    reason: str
    alternative: float


def judge(candidate: Figures, full: Figures, fewer: Sequence[Figures]) -> Verdict:
    """Compare a candidate with its own student.

    Args:
        full: the full plan on the target engine, without the pass; `time_ratio` is 1.
        fewer: plans with fewer steps on the same engine, in any order. May be empty; then only being closer than `full` at no
            more time counts.

    Returns:
        Accepted if the candidate is faster than `full` and closer than what the plans offer in its time (where it is faster
        than all of them: closer than the fastest), or closer than `full` and not slower. Both the time and the distance
        must be better beyond the 95 % interval of what was measured.
    """
    saves_time = candidate.time_high < 1.0
    time = candidate.time_high if saves_time else 1.0
    alternative_B = _alternative([full, *fewer], time)
    alternative = float(alternative_B.mean())
    closer = _upper(candidate.distance_B - alternative_B) < 0
    if not saves_time and candidate.time_low > 1.0:
        return Verdict(accepted=False, reason="slower than the full plan without it", alternative=alternative)
    if not saves_time:
        reason = (
            "closer than the full plan, in the same time" if closer else "neither faster nor closer than the full plan"
        )
        return Verdict(accepted=closer, reason=reason, alternative=alternative)
    if not fewer:
        reason = "the contract has no plan with fewer steps to compare with"
        return Verdict(accepted=False, reason=reason, alternative=alternative)
    figures = f"{candidate.distance:.4f} against {alternative:.4f}"
    reason = "closer than fewer steps" if closer else "not closer than fewer steps beyond the spread of images"
    reason = f"{reason} in its time: {figures}"
    return Verdict(accepted=closer, reason=reason, alternative=alternative)


def _alternative(plans: Sequence[Figures], time: float) -> Array:
    """Distance per image of the best mixture of plans that takes `time`; that of the fastest plan where all take longer."""
    hull = _hull(plans)
    times = [plan.time_ratio for plan in hull]
    after = int(np.searchsorted(times, time))
    if after in (0, len(hull)):
        return hull[min(after, len(hull) - 1)].distance_B
    left, right = hull[after - 1], hull[after]
    weight = (time - left.time_ratio) / (right.time_ratio - left.time_ratio)
    mixture: Array = (1 - weight) * left.distance_B + weight * right.distance_B
    return mixture


def _hull(plans: Sequence[Figures]) -> list[Figures]:
    """Lower convex hull of (time, mean distance), by ascending time; plans that are slower and no closer are not part of it."""
    hull: list[Figures] = []
    for plan in sorted(plans, key=lambda item: (item.time_ratio, item.distance)):
        if hull and plan.distance >= hull[-1].distance:
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) >= _slope(hull[-1], plan):
            hull.pop()
        hull.append(plan)
    return hull


def _slope(left: Figures, right: Figures) -> float:
    return (right.distance - left.distance) / max(right.time_ratio - left.time_ratio, 1e-12)


def _upper(difference_B: Array) -> float:
    """Upper end of the 95 % interval of the mean, by the normal approximation; the mean itself for one image."""
    spread = difference_B.std(ddof=1) / np.sqrt(len(difference_B)) if len(difference_B) > 1 else 0.0
    return float(difference_B.mean() + 1.96 * spread)
