"""Any process in the coordinates of the rectified flow, where a jump between two times is a straight line.

``y = x / (alpha + sigma)`` at ``tau = sigma / (alpha + sigma)`` is the rectified flow's state of the same x0 and eps, a DDIM
jump of any process is ``y_s = y_t - (tau_t - tau_s) u`` with ``u = (y_t - x0) / tau_t``, and the velocity of the probability
flow ODE is u of the denoiser. So the average-velocity methods (shortcut models, MeanFlow) train students that keep their
teacher's process and prediction: their x0 depends on two times and their table is a row of DDIM jumps (`ctm`).
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

from torch import Tensor, nn

from distill_rt.core.prediction import ddim_jump
from distill_rt.core.process import NoiseProcess
from distill_rt.core.samplers.flow_map import ctm
from distill_rt.core.spec import StudentSpec
from distill_rt.training.plans import powers_of_two, uniform_times
from distill_rt.training.predictor import Conditions, Predictor
from distill_rt.training.student import distilled_contract

T = TypeVar("T", float, Tensor)


def flow_time(process: NoiseProcess, t_B: Tensor) -> Tensor:
    """tau, (B,)."""
    tau: Tensor = process.sigma(t_B) / (process.alpha(t_B) + process.sigma(t_B))
    return tau


def flow_speed(process: NoiseProcess, t_B: Tensor) -> Tensor:
    """d tau / d t, (B,)."""
    level = process.at(t_B)
    speed: Tensor = (level.d_sigma * level.alpha - level.d_alpha * level.sigma) / (level.alpha + level.sigma) ** 2
    return speed


def velocity(process: NoiseProcess, x_BCHW: Tensor, x0_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """u, (B, C, H, W): average from t to s for an x0 of two times, the ODE's own for a denoiser's x0. Needs t > 0."""
    level = process.at(t_B).like(x_BCHW)
    total = level.alpha + level.sigma
    u: Tensor = (x_BCHW / total - x0_BCHW) * total / level.sigma
    return u


def velocity_weight(process: NoiseProcess, t_B: Tensor) -> Tensor:
    """``1 / tau^2``, (B,): turns squared errors of x0 into those of u; limited to 10^4, where t is data."""
    return 1.0 / flow_time(process, t_B).clamp(min=0.01) ** 2


def two_time_contract(
    teacher: StudentSpec, *, method: str, steps: int, settings: dict[str, Any], guided: bool = True
) -> StudentSpec:
    """A student whose x0 depends on two times: 1, 2, 4, ... `steps` deterministic jumps, uniform in time."""
    plans = {n: ctm(teacher.process, teacher.parameterization, uniform_times(n)) for n in powers_of_two(steps)}
    return distilled_contract(
        teacher, method=method, plans=plans, default_steps=steps, settings=settings, guided=guided
    )


def two_time_x0(
    spec: StudentSpec, network: nn.Module, x_BCHW: Tensor, t_B: Tensor, s_B: Tensor, conditions: Conditions
) -> Tensor:
    """x0 of a network that knows both times; `spec` is the teacher's contract, whose process and prediction it keeps."""
    return Predictor.of(spec, network).x0(x_BCHW, t_B, dataclasses.replace(conditions, second_time_B=s_B))


def jump(process: NoiseProcess, x_BCHW: Tensor, x0_BCHW: Tensor, t_B: Tensor, s_B: Tensor) -> Tensor:
    """The DDIM jump from t to s."""
    x_s: Tensor = ddim_jump(x_BCHW, x0_BCHW, process.at(t_B), process.at(s_B))
    return x_s


def t_from_flow_time(process: NoiseProcess, tau: T) -> T:
    """The process's t of a flow time, limited to [0, 1] (a process may end before pure noise or clean data)."""
    # arctan knows infinity, so that tau = 1 needs no special case
    if isinstance(tau, Tensor):
        t: Tensor = process.t_from_sigma_ratio(tau / (1.0 - tau))
        return t.clamp(0.0, 1.0)
    return min(max(float(process.t_from_sigma_ratio(tau / (1.0 - tau) if tau < 1.0 else float("inf"))), 0.0), 1.0)
