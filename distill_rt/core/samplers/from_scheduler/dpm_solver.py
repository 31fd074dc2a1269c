"""DPMSolverMultistepScheduler as DPM-Solver++ of first and second order."""

from __future__ import annotations

import itertools
import math

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import DATA, NoiseLevel
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m_rows
from distill_rt.core.samplers.from_scheduler.discrete import (
    PREDICTIONS,
    level_of_sigma,
    read_alphas_bar,
    read_sigma_grid,
    read_threshold,
    sigma_grid,
    table_sigmas,
)
from distill_rt.core.samplers.from_scheduler.options import Options
from distill_rt.core.spacing import SPACINGS, require_steps, shift_flow, sigma_to_timestep, unsupported
from distill_rt.core.table import StepTable

MAX_STEPS_OF_LOWER_ORDER_FINAL = 15


def dpm_solver_from_scheduler(options: Options, num_steps: int) -> StepTable:
    """Options: ``mu``, only with ``use_dynamic_shifting``: the flow shift is then e^mu."""
    bar = read_alphas_bar(options)
    clip_zero_snr = options.flag("rescale_betas_zero_snr", False)
    order = options.choice("solver_order", 2, (1, 2))
    options.choice("algorithm_type", "dpmsolver++", ("dpmsolver++",))
    # the scheduler reads the solver types of two other schedulers as midpoint
    solver = options.choice("solver_type", "midpoint", ("midpoint", "heun", "logrho", "bh1", "bh2"))
    lower_order_final = options.flag("lower_order_final", True) and num_steps < MAX_STEPS_OF_LOWER_ORDER_FINAL
    euler_at_final = options.flag("euler_at_final", False)
    final = options.choice("final_sigmas_type", "zero", ("zero", "sigma_min"))
    options.choice("variance_type", None, (None,))
    threshold = read_threshold(options)
    flow = options.flag("use_flow_sigmas", False)
    prediction = _read_prediction(options, flow=flow)
    table = table_sigmas(bar, clip_zero_snr=clip_zero_snr)
    sigmas, times, flow = _grid(options, num_steps, table, flow=flow)
    options.finish()

    def level(sigma: float, time: float = 0.0) -> NoiseLevel:
        if flow:
            return NoiseLevel(alpha=1.0 - sigma, sigma=sigma, d_alpha=-1.0, d_sigma=1.0, model_time=time)
        return level_of_sigma(sigma, time)

    levels = [level(float(s), float(time)) for s, time in zip(sigmas.astype(np.float32), times, strict=True)]
    end = DATA if final == "zero" else level(float(table[0]))
    rows = dpmpp_2m_rows(
        list(itertools.pairwise([*levels, end])),
        Parameterization(prediction=prediction).coefficients,
        order=order,
        solver_type="heun" if solver == "heun" else "midpoint",
        lower_order_final=lower_order_final or euler_at_final,
        **threshold,
    )
    return StepTable(rows=rows)


def _read_prediction(options: Options, *, flow: bool) -> Prediction:
    name = options.choice("prediction_type", "epsilon", (*PREDICTIONS, "flow_prediction"))
    if name == "flow_prediction":
        if not flow:
            raise UsageError(
                "DPMSolverMultistepScheduler: flow_prediction is only defined with use_flow_sigmas",
                code="option-invalid",
                hint="set use_flow_sigmas, or correct prediction_type",
            )
        return Prediction.FLOW
    if flow and name == "v_prediction":
        raise unsupported(
            "DPMSolverMultistepScheduler: prediction_type with use_flow_sigmas",
            name,
            ("flow_prediction", "epsilon", "sample"),
        )
    return PREDICTIONS[name]


def _grid(
    options: Options, num_steps: int, table: NDArray[np.float32], *, flow: bool
) -> tuple[NDArray[np.float64], NDArray[np.float64], bool]:
    """(sigmas, times, whether sigmas are flow times). Times are integers, as the scheduler casts them."""
    num = len(table)
    spacing = options.choice("timestep_spacing", "linspace", SPACINGS)
    offset = options.integer("steps_offset", 0)
    kind = read_sigma_grid(options)
    lu = options.flag("use_lu_lambdas", False)
    shift = _read_shift(options)
    rounds = options.choice("beta_schedule", "linear", ("linear", "scaled_linear", "squaredcos_cap_v2")) != (
        "squaredcos_cap_v2"
    )
    # lambda = -log(sigma) falls with the timestep: those below lambda_min_clipped are not visited
    last = num - int(np.searchsorted(-np.log(table[::-1]), options.number("lambda_min_clipped", -math.inf)))
    require_steps(num_steps, num - 1)
    times = _timesteps(spacing, num_steps, num, last, offset)
    if flow and kind is None and not lu:
        grid = 1.0 - np.linspace(1.0, 1.0 / num, num_steps + 1)
        sigmas = np.flip(shift_flow(grid, shift))[:-1].astype(np.float64)
        return sigmas, np.floor(sigmas * num), True
    if flow:
        raise UsageError(
            "DPMSolverMultistepScheduler: use_flow_sigmas cannot be combined with another sigma grid",
            code="option-invalid",
            hint="turn one of them off",
        )
    if kind:
        sigmas = sigma_grid(options, kind, float(table[0]), float(table[-1]), num_steps)
        times = sigma_to_timestep(sigmas, table)
        rounds = rounds and kind == "karras"
    elif lu:
        sigmas = np.exp(np.linspace(float(np.log(table[-1])), float(np.log(table[0])), num_steps))
        times = sigma_to_timestep(sigmas, table)
    else:
        return np.interp(times, np.arange(num), table), times, False
    # the tolerance keeps the ends of the grid (999 computed as 998.9999999999999) from losing a whole timestep
    return sigmas, np.floor(times.round() if rounds else times + 1e-9), False


def _timesteps(spacing: str, num_steps: int, num: int, last: int, offset: int) -> NDArray[np.float64]:
    """This scheduler's own spacings: linspace and leading make one timestep more and leave the lowest out."""
    if spacing == "linspace":
        return np.linspace(0, last - 1, num_steps + 1).round()[::-1][:-1]
    if spacing == "leading":
        times = np.arange(num_steps + 1)[::-1][:-1] * (last // (num_steps + 1)) + offset
        return times.astype(np.float64)
    return np.arange(last, 0, -num / num_steps).round()[:num_steps] - 1.0


def _read_shift(options: Options) -> float:
    shift = options.positive("flow_shift", 1.0)
    options.choice("time_shift_type", "exponential", ("exponential",))
    dynamic, mu = options.flag("use_dynamic_shifting", False), options.argument("mu")
    if mu is None:
        return shift
    if not dynamic:
        raise UsageError(
            "DPMSolverMultistepScheduler: mu needs use_dynamic_shifting",
            code="option-invalid",
            hint="leave mu out, or set use_dynamic_shifting",
        )
    return math.exp(options.argument_number("mu", 0.0))
