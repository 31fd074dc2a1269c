"""LCMScheduler and TCDScheduler: students on a skipping grid of the timesteps they were distilled on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import LCMBoundary, Parameterization
from distill_rt.core.process import NoiseLevel
from distill_rt.core.samplers.from_scheduler.discrete import (
    level_of_timestep,
    read_alphas_bar,
    read_clipping,
    read_prediction,
    refuse_eps_at_zero_snr,
)
from distill_rt.core.samplers.from_scheduler.options import Options
from distill_rt.core.samplers.tcd import tcd_rows
from distill_rt.core.spacing import require_exact, require_falling, skipping_timesteps, take_evenly
from distill_rt.core.table import Row, StepTable


def lcm_from_scheduler(options: Options, num_steps: int) -> StepTable:
    """Options: ``timesteps`` (explicit, falling), ``original_inference_steps``.

    Clipping acts on the network's x0, before the boundary condition mixes the state in, so it cannot be part of a
    `Parameterization`; the boundary is in (r, g) here.
    """
    bar = read_alphas_bar(options, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    prediction = read_prediction(options)
    clipping = read_clipping(options, clip_default=False)
    boundary = LCMBoundary(timestep_scaling=options.positive("timestep_scaling", 10.0))
    timesteps = _timesteps(options, num_steps, len(bar), all_timesteps_if_argument=False)
    options.without_effect("set_alpha_to_one", "steps_offset", "timestep_spacing")
    options.finish()

    levels = [level_of_timestep(bar, timestep) for timestep in timesteps]
    refuse_eps_at_zero_snr(options, prediction, levels)
    network = Parameterization(prediction=prediction)
    rows = []
    for i, level in enumerate(levels):
        p, q, c_in = network.coefficients(level)
        skip, out, _ = boundary.scalings(level)
        last = i == len(levels) - 1
        alpha, n = (1.0, 0.0) if last else (levels[i + 1].alpha, levels[i + 1].sigma)
        rows.append(
            Row(
                time=level.model_time,
                c_in=c_in,
                p=p,
                q=q,
                r=alpha * skip,
                g=alpha * out,
                n=n,
                stream=i + 1,
                **clipping,
            )
        )
    return StepTable(rows=tuple(rows))


def tcd_from_scheduler(options: Options, num_steps: int) -> StepTable:
    """Options: ``eta`` (the paper's gamma, in [0, 1], 0.3), ``timesteps``, ``original_inference_steps``.

    The scheduler declares clip_sample and thresholding but never applies them; neither do we.
    """
    bar = read_alphas_bar(options, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    prediction = read_prediction(options)
    gamma = options.argument_number("eta", 0.3, low=0.0, high=1.0)
    timesteps = _timesteps(options, num_steps, len(bar), all_timesteps_if_argument=True)
    options.without_effect(
        "clip_sample",
        "clip_sample_range",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "timestep_scaling",
        "timestep_spacing",
        "set_alpha_to_one",
        "steps_offset",
    )
    options.finish()

    levels = {timestep: level_of_timestep(bar, timestep) for timestep in [*timesteps, 0]}
    refuse_eps_at_zero_snr(options, prediction, list(levels.values()))
    steps: list[tuple[NoiseLevel, NoiseLevel, NoiseLevel]] = []
    for timestep, target in zip(timesteps, [*timesteps[1:], 0], strict=True):
        # float32, as the scheduler computes it: 0.7 * 10 must floor to what it floors to there
        below = int(np.floor(np.float32(1.0 - gamma) * np.float32(target)))
        up = levels[target] if len(steps) < len(timesteps) - 1 and gamma > 0 else level_of_timestep(bar, below)
        lower = up if gamma == 0 or len(steps) == len(timesteps) - 1 else level_of_timestep(bar, below)
        steps.append((levels[timestep], lower, up))
    return StepTable(rows=tcd_rows(steps, Parameterization(prediction=prediction).coefficients))


def _timesteps(
    options: Options, num_steps: int, num_train_timesteps: int, *, all_timesteps_if_argument: bool
) -> Sequence[int]:
    """The skipping grid, or the caller's own timesteps.

    Args:
        all_timesteps_if_argument: TCD's scheduler spreads the steps over all training timesteps where the call (and not
            the configuration) names original_inference_steps.
    """
    original = options.count("original_inference_steps", 50)
    argument = options.argument("original_inference_steps")
    if argument is not None:
        original = int(argument)
    explicit = options.argument_numbers("timesteps")
    if explicit is not None:
        require_exact(num_steps, len(explicit))
        require_falling(explicit, num_train_timesteps)
        if any(timestep != int(timestep) for timestep in explicit):
            raise UsageError(
                f"{options.class_name}: timesteps must be integers, got {list(explicit)}",
                code="timesteps-invalid",
                hint="for example 999, 749, 499, 249",
            )
        return [int(timestep) for timestep in explicit]
    grid = skipping_timesteps(num_steps, num_train_timesteps, original_inference_steps=original)
    if argument is not None and all_timesteps_if_argument:
        grid = take_evenly(np.arange(num_train_timesteps)[::-1], num_steps)
    return [int(timestep) for timestep in grid]
