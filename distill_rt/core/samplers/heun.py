"""Heun's second order method: Karras et al. 2022 (arXiv 2206.00364), algorithm 1.

Two rows per step. The first is an Euler step and saves its input as the anchor; the second evaluates the network at the
new point and replaces the step by the mean of the two slopes. A last step to clean data stays an Euler step.
"""

from __future__ import annotations

from collections.abc import Sequence

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import Parameterization, Prediction, as_parameterization
from distill_rt.core.process import NoiseProcess
from distill_rt.core.samplers.ddim import jump
from distill_rt.core.samplers.grid import Coefficients, Path, visited_levels
from distill_rt.core.table import Row, StepTable


def heun(
    process: NoiseProcess,
    prediction: Prediction | Parameterization,
    times: Sequence[float],
    *,
    clip: float | None = None,
    end: float | None = None,
) -> StepTable:
    """Heun in sigma / alpha: 2N - 1 evaluations for N times that end at clean data, else 2N.

    Args:
        process, prediction, times, end: see `ddim`. The first level must not be pure noise (alpha = 0), where sigma /
            alpha is infinite.
        clip: clamp every x0 to [-clip, clip].
    """
    rows = heun_rows(visited_levels(process, times, end), as_parameterization(prediction).coefficients, clip=clip)
    return StepTable(init_scale=process.init_scale(times[0]), rows=rows)


def heun_rows(path: Path, coefficients: Coefficients, *, clip: float | None = None) -> tuple[Row, ...]:
    """Rows along explicit levels."""
    rows = []
    for t, s in path:
        if t.alpha == 0:
            raise UsageError(
                "Heun's method cannot start at pure noise (alpha = 0): sigma / alpha is infinite there",
                code="heun-at-zero-snr",
                hint="start slightly below t = 1",
            )
        p, q, c_in = coefficients(t)
        r, g = jump(t, s)
        rows.append(
            Row(time=t.model_time, c_in=c_in, p=p, q=q, clip=clip, r=r, g=g, set_anchor=s.sigma > 0),
        )
        if s.sigma == 0:
            continue
        # In y = x / alpha and rho = sigma / alpha: y_s = y_t + half * ((y_t - x0_t)/rho_t + (y' - x0_s)/rho_s)
        rho_t, rho_s = t.sigma / t.alpha, s.sigma / s.alpha
        half = 0.5 * (rho_s - rho_t)
        p, q, c_in = coefficients(s)
        rows.append(
            Row(
                time=s.model_time,
                c_in=c_in,
                p=p,
                q=q,
                clip=clip,
                r=half / rho_s,
                g=-s.alpha * half / rho_s,
                h1=-s.alpha * half / rho_t,
                k=s.alpha / t.alpha * (1 + half / rho_t),
            )
        )
    return tuple(rows)
