"""DDIMScheduler and DDPMScheduler."""

from __future__ import annotations

import itertools

from distill_rt.core.prediction import Parameterization
from distill_rt.core.process import DATA
from distill_rt.core.samplers.ddim import ddim_rows
from distill_rt.core.samplers.ddpm import ddpm_rows
from distill_rt.core.samplers.from_scheduler.discrete import (
    level_of_timestep,
    read_alphas_bar,
    read_clipping,
    read_prediction,
    refuse_eps_at_zero_snr,
)
from distill_rt.core.samplers.from_scheduler.options import Options
from distill_rt.core.spacing import SPACINGS, require_exact, require_falling, spaced_timesteps
from distill_rt.core.table import StepTable


def ddim_from_scheduler(options: Options, num_steps: int) -> StepTable:
    """Options: ``eta`` in [0, 1] (0), ``use_clipped_model_output`` (false).

    The target of a step is ``timestep - T // num_steps``, which for linspace and for trailing steps that do not divide T is
    not the next timestep: that is what the scheduler does, and what students run with it have seen.
    """
    bar = read_alphas_bar(options)
    prediction = read_prediction(options)
    clipping = read_clipping(options, clip_default=True)
    spacing = options.choice("timestep_spacing", "leading", SPACINGS)
    offset = options.integer("steps_offset", 0)
    to_one = options.flag("set_alpha_to_one", True)
    eta = options.argument_number("eta", 0.0, low=0.0, high=1.0)
    rederive = bool(options.argument("use_clipped_model_output", False))
    options.finish()

    timesteps = spaced_timesteps(spacing, num_steps, len(bar), steps_offset=offset)
    final = DATA if to_one else level_of_timestep(bar, 0)
    path = []
    for timestep in timesteps:
        target = int(timestep) - len(bar) // num_steps
        path.append((level_of_timestep(bar, timestep), final if target < 0 else level_of_timestep(bar, target)))
    refuse_eps_at_zero_snr(options, prediction, [t for t, _ in path])
    network = Parameterization(prediction=prediction)
    rows = ddim_rows(path, network.coefficients, eta=eta, keep_noise=not rederive, **clipping)
    return StepTable(rows=rows)


def ddpm_from_scheduler(options: Options, num_steps: int) -> StepTable:
    """Options: ``timesteps``, explicit and falling, instead of the spacing's."""
    bar = read_alphas_bar(options)
    prediction = read_prediction(options)
    clipping = read_clipping(options, clip_default=True)
    spacing = options.choice("timestep_spacing", "leading", SPACINGS)
    offset = options.integer("steps_offset", 0)
    # fixed_large_log is left out: the scheduler takes the root of a logarithm there, which is not a number
    variance = options.choice("variance_type", "fixed_small", ("fixed_small", "fixed_small_log", "fixed_large"))
    explicit = options.argument_numbers("timesteps")
    options.finish()

    timesteps = spaced_timesteps(spacing, num_steps, len(bar), steps_offset=offset) if explicit is None else explicit
    if explicit is not None:
        require_exact(num_steps, len(explicit))
        require_falling(explicit, len(bar))
    levels = [level_of_timestep(bar, timestep) for timestep in timesteps]
    refuse_eps_at_zero_snr(options, prediction, levels)
    rows = ddpm_rows(
        list(itertools.pairwise([*levels, DATA])),
        Parameterization(prediction=prediction).coefficients,
        variance="large" if variance == "fixed_large" else "small",
        noise_at_end=timesteps[-1] > 0,
        **clipping,
    )
    return StepTable(rows=rows)
