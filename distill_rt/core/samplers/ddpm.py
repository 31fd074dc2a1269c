"""DDPM: Ho et al. 2020 (arXiv 2006.11239), equations 6 and 7, with the two fixed variances of section 3.2."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from distill_rt.core.prediction import Parameterization, Prediction, as_parameterization
from distill_rt.core.process import NoiseProcess
from distill_rt.core.samplers.ddim import added_std, jump, posterior_std
from distill_rt.core.samplers.grid import Coefficients, Path, visited_levels
from distill_rt.core.table import Row, StepTable

Variance = Literal["small", "large"]


def ddpm(
    process: NoiseProcess,
    prediction: Prediction | Parameterization,
    times: Sequence[float],
    *,
    variance: Variance = "small",
    clip: float | None = None,
    end: float | None = None,
) -> StepTable:
    """Ancestral sampling with the posterior mean; also the rows of a DDGAN student.

    Args:
        process, prediction, times, end: see `ddim`.
        variance: ``small`` is the posterior's (right for data at a point), ``large`` that of the forward step (right for
            Gaussian data). A last step to clean data adds no noise.
        clip: clamp x0 to [-clip, clip].
    """
    rows = ddpm_rows(
        visited_levels(process, times, end), as_parameterization(prediction).coefficients, variance=variance, clip=clip
    )
    return StepTable(init_scale=process.init_scale(times[0]), rows=rows)


def ddpm_rows(
    path: Path,
    coefficients: Coefficients,
    *,
    variance: Variance = "small",
    clip: float | None = None,
    threshold_ratio: float | None = None,
    threshold_max: float = 1.0,
    noise_at_end: bool = False,
) -> tuple[Row, ...]:
    """Rows along explicit levels; `noise_at_end` keeps the large variance in a step that ends at clean data."""
    rows = []
    for i, (t, s) in enumerate(path):
        p, q, c_in = coefficients(t)
        r, g = jump(t, s, posterior_std(t, s))
        n = posterior_std(t, s) if variance == "small" else added_std(t, s) * (s.sigma > 0 or noise_at_end)
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
                n=n,
                stream=i + 1,
            )
        )
    return tuple(rows)
