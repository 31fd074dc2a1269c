"""Euler methods on the probability flow ODE: Karras et al. 2022 (arXiv 2206.00364), algorithms 1 and 2 without correction.

In x / alpha the ODE is dx/dsigma = (x - x0) / sigma with sigma = sigma / alpha, and an Euler step is exactly a DDIM step: the
table is the same whichever coordinates the state is kept in. Rows here keep the process's own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import Parameterization, Prediction, as_parameterization
from distill_rt.core.process import NoiseLevel, NoiseProcess
from distill_rt.core.samplers.ddim import ddim, jump
from distill_rt.core.samplers.grid import scalar_level, visited_levels
from distill_rt.core.table import NO_NETWORK, Row, StepTable


def euler(
    process: NoiseProcess,
    prediction: Prediction | Parameterization,
    times: Sequence[float],
    *,
    clip: float | None = None,
    end: float | None = None,
) -> StepTable:
    """Euler in sigma / alpha: DDIM with eta 0. Arguments as there."""
    return ddim(process, prediction, times, clip=clip, end=end)


def euler_ancestral(
    process: NoiseProcess,
    prediction: Prediction | Parameterization,
    times: Sequence[float],
    *,
    clip: float | None = None,
    end: float | None = None,
) -> StepTable:
    """Ancestral Euler (k-diffusion): step down to sigma_down, noise up by sigma_up. DDIM with eta 1; arguments as there."""
    return ddim(process, prediction, times, eta=1.0, clip=clip, end=end)


def euler_flow(
    process: NoiseProcess, prediction: Prediction | Parameterization, times: Sequence[float], *, end: float = 0.0
) -> StepTable:
    """Euler in the process's own time: ``x_s = x_t + (s - t) * u``, ``u = d_alpha*x0 + d_sigma*eps``.

    On the rectified flow this is DDIM again; on other processes it is another discretisation of the same ODE.
    """
    network = as_parameterization(prediction)
    path = visited_levels(process, times, end)
    rows = []
    for (t, _), now, later in zip(path, times, [*times[1:], end], strict=True):
        p, q, c_in = network.coefficients(t)
        a, b = flow_weights(t)
        rows.append(Row(time=t.model_time, c_in=c_in, p=p, q=q, r=1 + (later - now) * a, g=(later - now) * b))
    return StepTable(init_scale=process.init_scale(times[0]), rows=tuple(rows))


def flow_weights(t: NoiseLevel) -> tuple[float, float]:
    """(a, b) with ``u = a*x + b*x0``."""
    return t.d_sigma / t.sigma, t.d_alpha - t.d_sigma * t.alpha / t.sigma


def euler_churn(
    process: NoiseProcess,
    prediction: Prediction | Parameterization,
    times: Sequence[float],
    *,
    s_churn: float,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    end: float | None = None,
) -> StepTable:
    """Stochastic Euler (Karras et al. 2022, algorithm 2 without its second half).

    Before a step at sigma (= sigma / alpha) in [s_tmin, s_tmax] a row without network adds noise up to sigma_hat =
    sigma * (1 + min(s_churn / N, sqrt(2) - 1)); the network is then evaluated at sigma_hat.

    Raises:
        UsageError: a churned level lies beyond t = 1, or is pure noise already.
    """
    if s_churn < 0 or s_noise <= 0:
        raise ValueError(f"s_churn must not be negative and s_noise positive, got {s_churn} and {s_noise}")
    network = as_parameterization(prediction)
    gamma = min(s_churn / len(times), math.sqrt(2) - 1)
    rows: list[Row] = []
    for t, s in visited_levels(process, times, end):
        level, ratio = t, t.sigma / t.alpha if t.alpha > 0 else math.inf
        if gamma > 0 and s_tmin <= ratio <= s_tmax:
            level = _raised(process, ratio * (1 + gamma))
            scale = level.alpha / t.alpha
            n = s_noise * level.alpha * ratio * math.sqrt((1 + gamma) ** 2 - 1)
            rows.append(Row(net_id=NO_NETWORK, r=scale, g=0.0, n=n, stream=len(rows) + 1))
        p, q, c_in = network.coefficients(level)
        r, g = jump(level, s)
        rows.append(Row(time=level.model_time, c_in=c_in, p=p, q=q, r=r, g=g))
    return StepTable(init_scale=process.init_scale(times[0]), rows=tuple(rows))


def _raised(process: NoiseProcess, ratio: float) -> NoiseLevel:
    t = float(process.t_from_sigma_ratio(ratio)) if math.isfinite(ratio) else math.inf
    if not t <= 1.0 + 1e-9:
        raise UsageError(
            f"churn would raise the noise to sigma {ratio:.4g}, beyond what the process knows",
            code="churn-out-of-range",
            hint="lower s_churn, or set s_tmax below the first sigma",
        )
    return scalar_level(process, min(t, 1.0))
