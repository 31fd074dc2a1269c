"""Trajectory consistency with strategic stochastic sampling: jump below the next level, then noise up to it.

Zheng et al. 2024 (TCD, arXiv 2402.19159, algorithm 4); the same row runs CTM's gamma sampling (Kim et al. 2023, algorithm 3)
and the stochastic sampler of guided distillation (Meng et al. 2023, section 3.3).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from distill_rt.core.prediction import Parameterization, Prediction, as_parameterization
from distill_rt.core.process import DATA, NoiseLevel, NoiseProcess
from distill_rt.core.samplers.ddim import added_std, jump
from distill_rt.core.samplers.grid import Coefficients, scalar_level, visited_levels
from distill_rt.core.table import Row, StepTable


def tcd(
    process: NoiseProcess,
    prediction: Prediction | Parameterization,
    times: Sequence[float],
    *,
    gamma: float = 0.3,
    end: float | None = None,
) -> StepTable:
    """``x_s'``: DDIM jump to ``s' = (1 - gamma) * s``, then forward noise from s' to s.

    Args:
        process, prediction, times, end: see `ddim`. The last step jumps straight to the end and draws no noise.
        gamma: in [0, 1]; 0 is DDIM, 1 is multistep consistency sampling where s' = 0 is clean data.
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}")
    visited_levels(process, times, end)  # validates the times
    steps = []
    for t, s in itertools.pairwise([*times, end]):
        here = scalar_level(process, float(t or 0.0))
        if s is None or s == end:
            there = DATA if s is None else scalar_level(process, float(s))
            steps.append((here, there, there))
        else:
            # gamma = 1 means clean data also where the process's own t = 0 keeps some noise
            below = DATA if gamma == 1.0 else scalar_level(process, (1.0 - gamma) * float(s))
            steps.append((here, below, scalar_level(process, float(s))))
    return StepTable(
        init_scale=process.init_scale(times[0]), rows=tcd_rows(steps, as_parameterization(prediction).coefficients)
    )


def tcd_rows(steps: Sequence[tuple[NoiseLevel, NoiseLevel, NoiseLevel]], coefficients: Coefficients) -> tuple[Row, ...]:
    """Rows along (from, jump target, noised up to)."""
    rows = []
    for i, (t, below, s) in enumerate(steps):
        p, q, c_in = coefficients(t)
        r, g = jump(t, below)
        kappa = s.alpha / below.alpha
        n = 0.0 if below is s else added_std(s, below)
        rows.append(
            Row(time=t.model_time, c_in=c_in, p=p, q=q, r=kappa * r, g=kappa * g, n=n, stream=i + 1),
        )
    return tuple(rows)
