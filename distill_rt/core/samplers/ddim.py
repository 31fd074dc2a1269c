"""DDIM and DDPM ancestral sampling, for any process: Song et al. 2021 (arXiv 2010.02502), equations 12 and 16."""

from __future__ import annotations

import math
from collections.abc import Sequence

from distill_rt.core.prediction import Parameterization, Prediction, as_parameterization
from distill_rt.core.process import NoiseLevel, NoiseProcess
from distill_rt.core.samplers.grid import Coefficients, Path, visited_levels
from distill_rt.core.table import Row, StepTable


def ddim(
    process: NoiseProcess,
    prediction: Prediction | Parameterization,
    times: Sequence[float],
    *,
    eta: float = 0.0,
    clip: float | None = None,
    end: float | None = None,
) -> StepTable:
    """Deterministic DDIM (eta 0) to ancestral DDPM (eta 1).

    This is also how students of progressive distillation, TRACT, PCM (deterministic) and Lightning are run.

    Args:
        process: the noise process; its state is the table's.
        prediction: what the network predicts, with or without preconditioning.
        times: where the network is evaluated, strictly falling in [0, 1].
        eta: in [0, 1]; scales the posterior's standard deviation.
        clip: clamp x0 to [-clip, clip] and re-derive the noise from it (Salimans & Ho 2022 evaluate so).
        end: process time of the result; None is clean data.
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    rows = ddim_rows(
        visited_levels(process, times, end), as_parameterization(prediction).coefficients, eta=eta, clip=clip
    )
    return StepTable(init_scale=process.init_scale(times[0]), rows=rows)


def ddim_rows(
    path: Path,
    coefficients: Coefficients,
    *,
    eta: float = 0.0,
    clip: float | None = None,
    threshold_ratio: float | None = None,
    threshold_max: float = 1.0,
    keep_noise: bool = False,
) -> tuple[Row, ...]:
    """Rows of DDIM along explicit levels.

    Args:
        keep_noise: with clip or threshold, leave the noise direction that F implies as it is instead of re-deriving it
            from the clipped x0 (the default of diffusers' DDIM).
    """
    rows = []
    for i, (t, s) in enumerate(path):
        p, q, c_in = coefficients(t)
        n = eta * posterior_std(t, s)
        r, g, f = (*jump(t, s, n), 0.0)
        if keep_noise and (clip is not None or threshold_ratio is not None):
            # eps = (x - alpha*(p*x + q*F)) / sigma from the unclipped prediction, x_s = alpha_s*x0 + direction*eps
            direction = r
            r, g, f = direction * (1 - t.alpha * p), s.alpha, -direction * t.alpha * q
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
                f=f,
                n=n,
                stream=i + 1,
            )
        )
    return tuple(rows)


def jump(t: NoiseLevel, s: NoiseLevel, noise_std: float = 0.0) -> tuple[float, float]:
    """(r, g): ``x_s = r*x_t + g*x0 + noise_std*z``, marginal of s kept (DDIM equation 12 for any alpha, sigma)."""
    direction = math.sqrt(max(s.sigma**2 - noise_std**2, 0.0))
    return direction / t.sigma, s.alpha - t.alpha * direction / t.sigma


def posterior_std(t: NoiseLevel, s: NoiseLevel) -> float:
    """Standard deviation of q(x_s | x_t, x0) (DDIM equation 16 with eta 1, for any alpha, sigma)."""
    return float(s.sigma / t.sigma * added_std(t, s))


def added_std(t: NoiseLevel, s: NoiseLevel) -> float:
    """Standard deviation of q(x_t | x_s): the noise that takes level s to the noisier level t."""
    return math.sqrt(max(t.sigma**2 - (t.alpha / s.alpha * s.sigma) ** 2, 0.0))
