"""The noise levels that a sampler visits, and what it must know of a network there."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TypeAlias

from distill_rt.core.errors import UsageError
from distill_rt.core.process import DATA, NoiseLevel, NoiseProcess

Path: TypeAlias = Sequence[tuple[NoiseLevel, NoiseLevel]]
"""(from, to) for every step, levels in Python floats."""

Coefficients: TypeAlias = Callable[[NoiseLevel], tuple[float, float, float]]
"""(p, q, c_in) of a network at a level; `Parameterization.coefficients` is one."""


def visited_levels(process: NoiseProcess, times: Sequence[float], end: float | None) -> Path:
    """From each of `times` to the next, the last one to `end` (None: clean data).

    Raises:
        UsageError: no times, times (with end) not strictly falling within [0, 1], or an evaluation where no noise is left.
    """
    path = [float(t) for t in times] + ([] if end is None else [float(end)])
    in_range = all(math.isfinite(t) and 0.0 <= t <= 1.0 for t in path)
    if not times or not in_range or any(s >= t for t, s in itertools.pairwise(path)):
        raise UsageError(
            f"times must fall strictly within [0, 1], got {path}",
            code="times-invalid",
            hint="for example (1.0, 0.75, 0.5, 0.25); t = 1 is noise, t = 0 is data",
        )
    levels = [scalar_level(process, t) for t in path] + ([DATA] if end is None else [])
    if any(level.sigma == 0.0 for level in levels[:-1]):
        raise UsageError(
            f"times where a network is evaluated must have noise left, got {path}",
            code="times-invalid",
            hint="leave out the last time: a sampler goes on from the one before it to clean data by itself",
        )
    return list(itertools.pairwise(levels))


def scalar_level(process: NoiseProcess, t: float) -> NoiseLevel:
    """`process.at(t)` in Python floats, for tables."""
    at = process.at(t)
    return NoiseLevel(
        alpha=float(at.alpha),
        sigma=float(at.sigma),
        d_alpha=float(at.d_alpha),
        d_sigma=float(at.d_sigma),
        model_time=float(at.model_time),
    )
