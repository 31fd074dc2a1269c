"""CMStochasticIterativeScheduler and EDMEulerScheduler: variance exploding, the state is x with alpha = 1."""

from __future__ import annotations

import itertools
import math

import numpy as np

from distill_rt.core.prediction import ConsistencyBoundary, EDMPreconditioning, Parameterization, Prediction
from distill_rt.core.process import DATA, NoiseLevel
from distill_rt.core.samplers.consistency import consistency_rows
from distill_rt.core.samplers.ddim import jump
from distill_rt.core.samplers.from_scheduler.options import Options
from distill_rt.core.spacing import (
    exponential_sigmas,
    karras_sigmas,
    require_exact,
    require_falling,
    require_steps,
    spaced_timesteps,
)
from distill_rt.core.table import Row, StepTable


def consistency_from_scheduler(options: Options, num_steps: int) -> StepTable:
    """Options: ``timesteps``, falling indices of the training grid (for example 22, 0)."""
    num = options.count("num_train_timesteps", 40)
    sigma_min, sigma_max = options.positive("sigma_min", 0.002), options.positive("sigma_max", 80.0)
    sigma_data, rho = options.positive("sigma_data", 0.5), options.positive("rho", 7.0)
    s_noise = options.positive("s_noise", 1.0)
    clips = options.flag("clip_denoised", True)
    explicit = options.argument_numbers("timesteps")
    options.finish()

    if explicit is not None:
        require_exact(num_steps, len(explicit))
        require_falling(explicit, num)
    indices = spaced_timesteps("leading", num_steps, num) if explicit is None else np.asarray(explicit)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + indices[::-1] / (num - 1) * (low - high)) ** rho
    levels = [
        NoiseLevel(alpha=1.0, sigma=float(np.float32(sigma)), model_time=250.0 * math.log(sigma)) for sigma in sigmas
    ]
    end = NoiseLevel(alpha=1.0, sigma=sigma_min)  # the prediction is the state at sigma_min: no noise is added there
    network = Parameterization(
        prediction=Prediction.X0, preconditioning=ConsistencyBoundary(sigma_min=sigma_min, sigma_data=sigma_data)
    )
    rows = consistency_rows(
        list(itertools.pairwise([*levels, end])),
        network.coefficients,
        clip=1.0 if clips else None,
        sigma_floor=sigma_min,
        s_noise=s_noise,
    )
    return StepTable(init_scale=sigma_max, rows=rows)


def edm_euler_from_scheduler(options: Options, num_steps: int) -> StepTable:
    """Options: ``s_churn``, ``s_tmin``, ``s_tmax``, ``s_noise``.

    With churn the scheduler adds noise after the network has seen the state (Karras et al. 2022 add it before; for that
    see `distill_rt.core.samplers.euler.euler_churn`).
    """
    require_steps(num_steps, options.count("num_train_timesteps", 1000))
    sigma_min, sigma_max = options.positive("sigma_min", 0.002), options.positive("sigma_max", 80.0)
    rho = options.positive("rho", 7.0)
    network = EDMPreconditioning(sigma_data=options.positive("sigma_data", 0.5))
    schedule = options.choice("sigma_schedule", "karras", ("karras", "exponential"))
    sign = -1.0 if options.choice("prediction_type", "epsilon", ("epsilon", "v_prediction")) == "v_prediction" else 1.0
    final = options.choice("final_sigmas_type", "zero", ("zero", "sigma_min"))
    churn = options.argument_number("s_churn", 0.0, low=0.0)
    s_tmin, s_tmax = options.argument_number("s_tmin", 0.0), options.argument_number("s_tmax", math.inf)
    s_noise = options.argument_number("s_noise", 1.0, low=0.0)
    options.finish()

    if schedule == "karras":
        grid = karras_sigmas(sigma_min, sigma_max, num_steps, rho=rho)
    else:
        # computed upwards and turned round: a single step gets sigma_min
        grid = exponential_sigmas(sigma_max, sigma_min, num_steps)[::-1]
    levels = [
        NoiseLevel(alpha=1.0, sigma=float(sigma), model_time=0.25 * math.log(sigma))
        for sigma in grid.astype(np.float32)
    ]
    gamma = min(churn / num_steps, math.sqrt(2) - 1)
    rows = []
    for i, (t, s) in enumerate(itertools.pairwise([*levels, DATA if final == "zero" else levels[-1]])):
        raised, noise = t, 0.0
        if gamma > 0 and s_tmin <= t.sigma <= s_tmax:
            raised = NoiseLevel(alpha=1.0, sigma=t.sigma * (1 + gamma))
            noise = s_noise * math.sqrt(raised.sigma**2 - t.sigma**2)
        skip, out, _ = network.scalings(raised)
        _, _, c_in = network.scalings(t)
        r, g = jump(raised, s)
        rows.append(
            Row(
                time=t.model_time,
                c_in=c_in,
                p=skip,
                q=sign * out,
                r=r,
                g=g,
                n=noise * (r + g * skip),
                stream=i + 1,
            )
        )
    return StepTable(init_scale=math.sqrt(sigma_max**2 + 1), rows=tuple(rows))
