"""Data of one Gaussian, whose network and whose flow are known."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from distill_rt.core.prediction import EDMPreconditioning, Parameterization, Prediction
from distill_rt.core.process import EDM, NoiseProcess, RectifiedFlow, Trig, VPCosine, VPLinear
from distill_rt.core.table import StepTable, run_table

Array = NDArray[np.float64]
Sampler = Callable[..., StepTable]

PROCESSES = [VPLinear(), VPCosine(), EDM(sigma_max=20.0), RectifiedFlow(), Trig()]
PREDICTIONS = [
    Parameterization(prediction=Prediction.EPS),
    Parameterization(prediction=Prediction.V),
    Parameterization(prediction=Prediction.FLOW),
    Parameterization(prediction=Prediction.X0, preconditioning=EDMPreconditioning()),
]
TIMES = (0.9, 0.7, 0.45, 0.2)
MEAN, STD = 0.3, 0.7
Z = np.linspace(-2.0, 2.0, 9)[None]

every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)


def unit_noise(stream: int) -> Array:
    return np.random.default_rng(stream).standard_normal(Z.shape)


def gaussian_network(process: NoiseProcess, network: Parameterization) -> Callable[..., Array]:
    """The exact network for x0 ~ N(MEAN, STD^2), in `network`'s output."""

    def evaluate(net_id: int, x_scaled: Array, time: float, second_time: float | None) -> Array:
        level = process.at(float(process.t_from_model_time(time)))
        x = x_scaled / network.coefficients(level)[2]
        return np.asarray(network.target(x, exact_x0(process, x, time), level))

    return evaluate


def exact_x0(process: NoiseProcess, x: Array, time: float) -> Array:
    """E[x0 | x_t] = MEAN + alpha*STD^2 / (alpha^2*STD^2 + sigma^2) * (x - alpha*MEAN)."""
    level = process.at(float(process.t_from_model_time(time)))
    gain = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
    return np.asarray(MEAN + gain * (x - level.alpha * MEAN))


def exact_flow(process: NoiseProcess, x: Array, t: float, s: float) -> Array:
    """The probability flow of Gaussian data keeps the standard score: (x - alpha*MEAN) / std is constant."""
    here, there = process.at(t), process.at(s)
    ratio = math.hypot(there.alpha * STD, there.sigma) / math.hypot(here.alpha * STD, here.sigma)
    return np.asarray(there.alpha * MEAN + ratio * (x - here.alpha * MEAN))


def error_of(sampler: Sampler, process: NoiseProcess, network: Parameterization, num_steps: int) -> float:
    """Error after `num_steps` steps, uniform in log SNR, from t = 0.9 to 0.05."""
    low, high = (float(process.log_snr(t)) for t in (0.9, 0.05))
    grid = [float(process.t_from_log_snr(value)) for value in np.linspace(low, high, num_steps + 1)]
    table = sampler(process, network, tuple(grid[:-1]), end=grid[-1])
    result = run_table(table, Z, gaussian_network(process, network))
    return float(np.abs(result - exact_flow(process, table.init_scale * Z, grid[0], grid[-1])).max())
