"""FlowMatchEulerDiscreteScheduler: rectified flow with shifted sigmas (Stable Diffusion 3, Flux, Wan)."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import DATA, NoiseLevel
from distill_rt.core.samplers.consistency import consistency_rows
from distill_rt.core.samplers.ddim import ddim_rows
from distill_rt.core.samplers.from_scheduler.discrete import read_sigma_grid, sigma_grid
from distill_rt.core.samplers.from_scheduler.options import Options
from distill_rt.core.spacing import require_exact, require_steps, shift_flow, shift_flow_dynamic, stretch_to_terminal
from distill_rt.core.table import Row, StepTable


def flow_match_from_scheduler(options: Options, num_steps: int) -> StepTable:
    """Options: ``sigmas`` (explicit, before shifting, as pipelines pass them), ``mu`` (with use_dynamic_shifting)."""
    num = options.count("num_train_timesteps", 1000)
    stochastic = options.flag("stochastic_sampling", False)
    inverted = options.flag("invert_sigmas", False)
    sigmas = _sigmas(options, num_steps, num).astype(np.float32)
    # read by pipelines, which turn the image size into mu
    options.without_effect("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len")
    options.finish()
    if inverted:
        if stochastic:
            raise UsageError(
                "FlowMatchEulerDiscreteScheduler: stochastic_sampling with invert_sigmas is not supported",
                code="option-unsupported",
                hint="turn one of them off",
            )
        return StepTable(rows=_inverted_rows(np.float32(1.0) - sigmas, num))
    levels = [_level(float(sigma), float(sigma * np.float32(num))) for sigma in sigmas]
    path = list(itertools.pairwise([*levels, DATA]))
    network = Parameterization(prediction=Prediction.FLOW)
    rows = (consistency_rows if stochastic else ddim_rows)(path, network.coefficients)
    return StepTable(rows=rows)


def _sigmas(options: Options, num_steps: int, num: int) -> NDArray[np.float64]:
    shift = options.positive("shift", 1.0)
    dynamic = options.flag("use_dynamic_shifting", False)
    shift_kind = options.choice("time_shift_type", "exponential", ("exponential", "linear"))
    terminal = options.optional_positive("shift_terminal")
    kind = read_sigma_grid(options)
    explicit, mu = options.argument_numbers("sigmas"), options.argument("mu")
    if explicit is not None:
        require_exact(num_steps, len(explicit))
        sigmas = np.asarray(explicit, np.float32).astype(np.float64)
        if not np.all((sigmas > 0) & (sigmas <= 1)) or np.any(np.diff(sigmas) >= 0):
            raise UsageError(
                f"sigmas must fall strictly within (0, 1], got {list(explicit)}",
                code="sigmas-invalid",
                hint="for example 1.0, 0.75, 0.5, 0.25",
            )
    else:
        require_steps(num_steps, num)
        ends = np.asarray([num, 1], np.float64) / num
        # the scheduler shifts the ends when it is made and the grid between them again
        high, low = ends if dynamic else shift_flow(ends, shift)
        sigmas = np.linspace(high, low, num_steps)
    if dynamic:
        if mu is None:
            raise UsageError(
                "FlowMatchEulerDiscreteScheduler: use_dynamic_shifting needs mu",
                code="option-missing",
                hint="pass mu=, which pipelines compute from the image size",
            )
        sigmas = shift_flow_dynamic(sigmas, options.argument_number("mu", 0.0), shift_kind)
    else:
        sigmas = shift_flow(sigmas, shift)
        if mu is not None:
            raise UsageError(
                "FlowMatchEulerDiscreteScheduler: mu needs use_dynamic_shifting",
                code="option-invalid",
                hint="leave mu out, or set use_dynamic_shifting",
            )
    if terminal:
        sigmas = stretch_to_terminal(sigmas, terminal)
    if kind:
        sigmas = sigma_grid(options, kind, float(sigmas[-1]), float(sigmas[0]), num_steps)
    return sigmas


def _level(sigma: float, time: float) -> NoiseLevel:
    return NoiseLevel(alpha=1.0 - sigma, sigma=sigma, d_alpha=-1.0, d_sigma=1.0, model_time=time)


def _inverted_rows(fractions: NDArray[np.float32], num: int) -> tuple[Row, ...]:
    """Networks whose time is the share of data and whose velocity points to it (Mochi): x0 = x + (1 - time) * F."""
    rows = []
    for now, later in itertools.pairwise([*map(float, fractions), 1.0]):
        g = (later - now) / (1.0 - now)
        rows.append(Row(time=float(np.float32(now) * np.float32(num)), p=1.0, q=1.0 - now, r=1.0 - g, g=g))
    return tuple(rows)
