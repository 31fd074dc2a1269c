"""DPM-Solver++(2M): Lu et al. 2022 (arXiv 2211.01095), algorithm 2; its Heun variant takes the exact integral."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from distill_rt.core.prediction import Parameterization, Prediction, as_parameterization
from distill_rt.core.process import NoiseLevel, NoiseProcess
from distill_rt.core.samplers.grid import Coefficients, Path, visited_levels
from distill_rt.core.table import Row, StepTable

SolverType = Literal["midpoint", "heun"]


def dpmpp_2m(
    process: NoiseProcess,
    prediction: Prediction | Parameterization,
    times: Sequence[float],
    *,
    solver_type: SolverType = "midpoint",
    lower_order_final: bool = False,
    clip: float | None = None,
    end: float | None = None,
) -> StepTable:
    """Second order multistep solver of the probability flow ODE in x0 and log SNR.

    Args:
        process, prediction, times, end: see `ddim`. A last step to clean data is always of first order (it is x0).
        solver_type: how the slope of x0 enters: midpoint rule or the exact integral ("heun").
        lower_order_final: first order in the last step also where it ends at noise.
        clip: clamp x0 to [-clip, clip] (history included).
    """
    rows = dpmpp_2m_rows(
        visited_levels(process, times, end),
        as_parameterization(prediction).coefficients,
        solver_type=solver_type,
        lower_order_final=lower_order_final,
        clip=clip,
    )
    return StepTable(init_scale=process.init_scale(times[0]), rows=rows)


def dpmpp_2m_rows(
    path: Path,
    coefficients: Coefficients,
    *,
    solver_type: SolverType = "midpoint",
    order: Literal[1, 2] = 2,
    lower_order_final: bool = False,
    clip: float | None = None,
    threshold_ratio: float | None = None,
    threshold_max: float = 1.0,
) -> tuple[Row, ...]:
    """Rows along explicit levels."""
    rows = []
    for i, (t, s) in enumerate(path):
        p, q, c_in = coefficients(t)
        last = i == len(path) - 1
        first_order = order == 1 or i == 0 or s.sigma == 0.0 or (lower_order_final and last)
        r, g, h1 = multistep_coefficients(None if first_order else path[i - 1][0], t, s, solver_type)
        rows.append(
            Row(
                time=t.model_time,
                c_in=c_in,
                p=p,
                q=q,
                clip=clip,
                threshold_ratio=threshold_ratio,
                threshold_max=threshold_max,
                r=r,
                g=g,
                h1=h1,
            )
        )
    return tuple(rows)


def multistep_coefficients(
    previous: NoiseLevel | None, t: NoiseLevel, s: NoiseLevel, solver_type: SolverType
) -> tuple[float, float, float]:
    """(r, g, h1) of one step t -> s, given the level of the evaluation before (None: first order)."""
    r = s.sigma / t.sigma
    first = s.alpha - t.alpha * r  # -alpha_s * expm1(-h), finite at both ends
    if previous is None:
        return r, first, 0.0
    h = half_log_snr(s) - half_log_snr(t)
    h_previous = half_log_snr(t) - half_log_snr(previous)  # inf after a start at pure noise: no slope
    second = 0.5 * first if solver_type == "midpoint" else s.alpha * (math.expm1(-h) / h + 1.0)
    weight = second * h / h_previous
    return r, first + weight, -weight


def half_log_snr(level: NoiseLevel) -> float:
    """log(alpha / sigma): lambda of Lu et al. 2022; -inf at pure noise."""
    return math.log(level.alpha / level.sigma) if level.alpha > 0 else -math.inf
