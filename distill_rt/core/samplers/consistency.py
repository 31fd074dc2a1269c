"""Multistep consistency sampling: predict x0, noise it again to the next level.

Song et al. 2023 (consistency models, algorithm 1); students of LCM, ECT, sCM, DMD2, LADD and most distribution matching
methods are run this way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from distill_rt.core.prediction import Parameterization, Prediction, as_parameterization
from distill_rt.core.process import NoiseProcess
from distill_rt.core.samplers.grid import Coefficients, Path, visited_levels
from distill_rt.core.table import Row, StepTable


def multistep_consistency(
    process: NoiseProcess,
    prediction: Prediction | Parameterization,
    times: Sequence[float],
    *,
    clip: float | None = None,
    sigma_floor: float = 0.0,
    end: float | None = None,
) -> StepTable:
    """``x_s = alpha_s * x0 + sqrt(sigma_s^2 - sigma_floor^2) * z``; the last step returns x0.

    Args:
        process, prediction, times, end: see `ddim`.
        clip: clamp x0 to [-clip, clip].
        sigma_floor: noise already left in the prediction; consistency models in EDM coordinates predict the state at
            sigma_min, so they use sigma_min here.
    """
    rows = consistency_rows(
        visited_levels(process, times, end),
        as_parameterization(prediction).coefficients,
        clip=clip,
        sigma_floor=sigma_floor,
    )
    return StepTable(init_scale=process.init_scale(times[0]), rows=rows)


def consistency_rows(
    path: Path, coefficients: Coefficients, *, clip: float | None = None, sigma_floor: float = 0.0, s_noise: float = 1.0
) -> tuple[Row, ...]:
    """Rows along explicit levels; `s_noise` scales the fresh noise."""
    rows = []
    for i, (t, s) in enumerate(path):
        p, q, c_in = coefficients(t)
        n = s_noise * math.sqrt(max(s.sigma**2 - sigma_floor**2, 0.0))
        rows.append(Row(time=t.model_time, c_in=c_in, p=p, q=q, clip=clip, g=s.alpha, n=n, stream=i + 1))
    return tuple(rows)


def one_step(
    process: NoiseProcess,
    prediction: Prediction | Parameterization,
    *,
    time: float = 1.0,
    clip: float | None = None,
    init_scale: float | None = None,
) -> StepTable:
    """A generator: one evaluation at `time`, its x0 is the sample (DMD, SiD, Diff-Instruct, knowledge distillation).

    Args:
        init_scale: scale of the input noise where it is not the process's own at `time` (SiD feeds 2.5 * z to a network
            conditioned on sigma 2.5).
    """
    table = multistep_consistency(process, prediction, (time,), clip=clip)
    return table if init_scale is None else StepTable(init_scale=init_scale, rows=table.rows)
