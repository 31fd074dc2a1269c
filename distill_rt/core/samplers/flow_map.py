"""Students that know two times: one evaluation jumps from t straight to s.

`flow_map` runs average velocities, ``x_s = x_t - (t - s) * F``: MeanFlow (Geng et al. 2025, equation 12), shortcut models
(Frans et al. 2024, equation 4), AYF, IMM on the Euler map. `ctm` runs consistency trajectory models (Kim et al. 2023, equation
9), ``x_s = (sigma_s/sigma_t)*x_t + (1 - sigma_s/sigma_t)*g`` where alpha = 1: a DDIM jump whose x0 depends on both times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

from distill_rt.core.prediction import Parameterization, Prediction, as_parameterization
from distill_rt.core.process import NoiseProcess
from distill_rt.core.samplers.ddim import added_std, jump
from distill_rt.core.samplers.grid import scalar_level, visited_levels
from distill_rt.core.table import Row, StepTable

SecondTime = Literal["target", "interval"]


def flow_map(
    process: NoiseProcess, times: Sequence[float], *, second_time: SecondTime = "target", end: float = 0.0
) -> StepTable:
    """Average-velocity students: ``x_s = x_t - (t - s) * F(x_t, t, s)``, t and s in process time.

    Args:
        process: scales times for the network and the initial noise; rectified flow for every published student.
        times: where the network is evaluated, strictly falling in (0, 1].
        second_time: what the network receives beside ``model_time(t)``: ``model_time(s)``, or the interval
            ``model_time(t) - model_time(s)`` (shortcut models).
        end: the last target.
    """
    visited_levels(process, times, end)  # validates the times
    rows = []
    for t, s in itertools.pairwise([*times, end]):
        now, later = float(process.model_time(t)), float(process.model_time(s))
        # x0 = x - t*F is the end of the straight line along F: exact for s = 0, a preview otherwise
        second = later if second_time == "target" else now - later
        rows.append(Row(time=now, second_time=second, p=1.0, q=-t, r=s / t, g=1.0 - s / t))
    return StepTable(init_scale=process.init_scale(times[0]), rows=tuple(rows))


def ctm(
    process: NoiseProcess,
    prediction: Prediction | Parameterization,
    times: Sequence[float],
    *,
    gamma: float = 0.0,
    end: float = 0.0,
) -> StepTable:
    """Consistency trajectory models with gamma sampling (Kim et al. 2023, algorithm 3).

    Every step but the last jumps to ``sigma' = sqrt(1 - gamma^2) * sigma_s`` and noises back up to sigma_s; gamma 0 is
    deterministic, gamma 1 is multistep consistency sampling.

    Args:
        process, prediction, times: see `ddim`.
        gamma: in [0, 1].
        end: the last target; the network must know its time, so clean data cannot be asked for where the process's own
            t = 0 keeps some noise (EDM ends at sigma_min).
    """
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma must be in [0, 1], got {gamma}")
    network = as_parameterization(prediction)
    rows = []
    path = visited_levels(process, times, end)
    for i, (t, s) in enumerate(path):
        below, n, kappa = s, 0.0, 1.0
        if i < len(path) - 1 and gamma > 0:
            ratio = math.sqrt(1 - gamma**2) * s.sigma / s.alpha
            below = scalar_level(process, max(float(process.t_from_sigma_ratio(ratio)), 0.0))
            n, kappa = added_std(s, below), s.alpha / below.alpha
        p, q, c_in = network.coefficients(t)
        r, g = jump(t, below)
        rows.append(
            Row(
                time=t.model_time,
                second_time=below.model_time,
                c_in=c_in,
                p=p,
                q=q,
                r=kappa * r,
                g=kappa * g,
                n=n,
                stream=i + 1,
            )
        )
    return StepTable(init_scale=process.init_scale(times[0]), rows=tuple(rows))
