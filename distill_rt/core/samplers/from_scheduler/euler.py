"""EulerDiscreteScheduler, EulerAncestralDiscreteScheduler and HeunDiscreteScheduler.

They work on x / alpha with sigma / alpha; a table here keeps x itself, where their steps are DDIM steps (see
`distill_rt.core.samplers.euler`) and the input scaling 1 / sqrt(sigma^2 + 1) = alpha disappears.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import DATA, NoiseLevel
from distill_rt.core.samplers.ddim import ddim_rows
from distill_rt.core.samplers.from_scheduler.discrete import (
    level_of_sigma,
    read_alphas_bar,
    read_prediction,
    read_sigma_grid,
    sigma_grid,
    table_sigmas,
)
from distill_rt.core.samplers.from_scheduler.options import Options
from distill_rt.core.samplers.heun import heun_rows
from distill_rt.core.spacing import SPACINGS, require_exact, require_falling, sigma_to_timestep, spaced_timesteps
from distill_rt.core.table import Row, StepTable

Sigmas = NDArray[np.float32]


def euler_from_scheduler(options: Options, num_steps: int) -> StepTable:
    """Options: ``timesteps`` (explicit, falling), ``s_churn``, ``s_tmin``, ``s_tmax``, ``s_noise``."""
    bar = read_alphas_bar(options)
    clip_zero_snr = options.flag("rescale_betas_zero_snr", False)
    prediction = _prediction_with_original_sample(options)
    interpolation = options.choice("interpolation_type", "linear", ("linear", "log_linear"))
    continuous = options.choice("timestep_type", "discrete", ("discrete", "continuous")) == "continuous"
    final = options.choice("final_sigmas_type", "zero", ("zero", "sigma_min"))
    churn = options.argument_number("s_churn", 0.0, low=0.0)
    s_tmin, s_tmax = options.argument_number("s_tmin", 0.0), options.argument_number("s_tmax", math.inf)
    s_noise = options.argument_number("s_noise", 1.0, low=0.0)
    explicit = options.argument_numbers("timesteps")
    table = table_sigmas(bar, clip_zero_snr=clip_zero_snr)
    sigmas, times, init = _grid(options, num_steps, table, explicit, log_linear=interpolation == "log_linear")
    options.finish()

    if explicit is not None and continuous:
        raise UsageError(
            "EulerDiscreteScheduler: explicit timesteps need timestep_type 'discrete'",
            code="option-invalid",
            hint="leave timesteps out",
        )
    if continuous and prediction is Prediction.V:  # the class ignores timestep_type for the other predictions
        times = 0.25 * np.log(sigmas.astype(np.float64))
    levels = [level_of_sigma(float(sigma), float(time)) for sigma, time in zip(sigmas, times, strict=False)]
    # A last sigma above zero is left in x / alpha, as the scheduler leaves it.
    levels.append(DATA if final == "zero" else NoiseLevel(alpha=1.0, sigma=float(table[0])))
    if interpolation == "log_linear" and len(sigmas) > num_steps:
        levels[-1] = NoiseLevel(
            alpha=1.0, sigma=float(sigmas[num_steps])
        )  # the grid's own last sigma; ours goes unused
    network = Parameterization(prediction=prediction)
    rows = list(ddim_rows(list(itertools.pairwise(levels)), network.coefficients))
    gamma = min(churn / len(sigmas), math.sqrt(2) - 1)
    for i, (t, s) in enumerate(itertools.pairwise(levels)):
        if gamma > 0 and s_tmin <= sigmas[i] <= s_tmax:
            rows[i] = _churned_row(t, s, prediction, gamma, s_noise, stream=i + 1)
    return StepTable(init_scale=init, rows=tuple(rows))


def euler_ancestral_from_scheduler(options: Options, num_steps: int) -> StepTable:
    """No options."""
    bar = read_alphas_bar(options)
    clip_zero_snr = options.flag("rescale_betas_zero_snr", False)
    prediction = read_prediction(options, ("epsilon", "v_prediction"))
    table = table_sigmas(bar, clip_zero_snr=clip_zero_snr)
    sigmas, times, init = _grid(options, num_steps, table, None, sigma_grids=False)
    options.finish()
    levels = [level_of_sigma(float(sigma), float(time)) for sigma, time in zip(sigmas, times, strict=True)]
    network = Parameterization(prediction=prediction)
    rows = ddim_rows(list(itertools.pairwise([*levels, DATA])), network.coefficients, eta=1.0)
    return StepTable(init_scale=init, rows=rows)


def heun_from_scheduler(options: Options, num_steps: int) -> StepTable:
    """Options: ``timesteps`` (explicit, falling). A table has 2 * num_steps - 1 evaluations."""
    bar = read_alphas_bar(options, beta_start=0.00085, beta_end=0.012, rescalable=False)
    prediction = read_prediction(options)
    clips, clip_range = options.flag("clip_sample", False), options.positive("clip_sample_range", 1.0)
    explicit = options.argument_numbers("timesteps")
    sigmas, times, init = _grid(options, num_steps, table_sigmas(bar), explicit)
    options.finish()
    levels = [level_of_sigma(float(sigma), float(time)) for sigma, time in zip(sigmas, times, strict=True)]
    rows = heun_rows(
        list(itertools.pairwise([*levels, DATA])),
        Parameterization(prediction=prediction).coefficients,
        clip=clip_range if clips else None,
    )
    return StepTable(init_scale=init, rows=rows)


def _grid(
    options: Options,
    num_steps: int,
    table: Sigmas,
    explicit: Sequence[float] | None,
    *,
    log_linear: bool = False,
    sigma_grids: bool = True,
) -> tuple[Sigmas, NDArray[np.float64], float]:
    """(sigmas, times, init_scale in our coordinates); sigmas has one more entry than times if log linear."""
    spacing = options.choice("timestep_spacing", "linspace", SPACINGS)
    offset = options.integer("steps_offset", 0)
    kind = read_sigma_grid(options) if sigma_grids else None
    times = spaced_timesteps(spacing, num_steps, len(table), steps_offset=offset, rounded=False)
    if explicit is not None:
        require_exact(num_steps, len(explicit))
        require_falling(explicit, len(table))
        if kind or log_linear:
            raise UsageError(
                f"{options.class_name}: explicit timesteps cannot be combined with a sigma grid",
                code="option-invalid",
                hint="leave timesteps out, or turn the sigma grid off",
            )
        times = np.asarray(explicit, np.float64)
    if log_linear:
        grid = np.exp(np.linspace(np.log(table[-1]), np.log(table[0]), num_steps + 1))
    else:
        grid = np.interp(times, np.arange(len(table)), table)
    if kind:
        grid = sigma_grid(options, kind, float(grid[-1]), float(grid[0]), num_steps)
        times = sigma_to_timestep(grid, table)
    sigmas = grid.astype(np.float32)
    first = level_of_sigma(float(sigmas[0]))
    # The scheduler starts x / alpha at sigma * z, or at sqrt(sigma^2 + 1) * z for leading spacing.
    return sigmas, times, first.sigma if spacing in ("linspace", "trailing") else 1.0


def _prediction_with_original_sample(options: Options) -> Prediction:
    names = ("epsilon", "sample", "v_prediction", "original_sample")
    if options.choice("prediction_type", "epsilon", names) == "original_sample":
        return Prediction.X0
    return read_prediction(options)


def _churned_row(
    t: NoiseLevel, s: NoiseLevel, prediction: Prediction, gamma: float, s_noise: float, *, stream: int
) -> Row:
    """One step of the scheduler with churn: noise is added after the network has seen the state.

    (Karras et al. 2022 add it before; `distill_rt.core.samplers.euler.euler_churn` does that.)
    """
    sigma = t.sigma / t.alpha
    raised = sigma * (1 + gamma)
    # x0 = p * X + q * F for the noised X = x / alpha + noise; v prediction keeps the coefficients of sigma.
    p, q = {
        Prediction.EPS: (1.0, -raised),
        Prediction.V: (t.alpha**2, -t.sigma),
        Prediction.X0: (0.0, 1.0),
    }[prediction]
    ratio = s.sigma / s.alpha / raised
    noise = s_noise * sigma * math.sqrt((1 + gamma) ** 2 - 1)
    return Row(
        time=t.model_time,
        p=p / t.alpha,
        q=q,
        r=s.alpha * ratio / t.alpha,
        g=s.alpha * (1 - ratio),
        n=s.alpha * noise * (ratio + (1 - ratio) * p),
        stream=stream,
    )
