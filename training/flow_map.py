"""Any process in the coordinates of the rectified flow, where a jump between two times is a straight line.

``y = x / (alpha + sigma)`` at ``tau = sigma / (alpha + sigma)`` is the rectified flow's state of the same x0 and eps, a DDIM
jump of any process is ``y_s = y_t - (tau_t - tau_s) u`` with ``u = (y_t - x0) / tau_t``, and the velocity of the probability
flow ODE is u of the denoiser. So the average-velocity methods (shortcut models, MeanFlow) train students that keep their
teacher's process and prediction: their x0 depends on two times and their table is a row of DDIM jumps (`ctm`).
"""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from distill_rt.core.process import NoiseProcess

T = TypeVar("T", float, Tensor)


def flow_time(process: NoiseProcess, t_B: Tensor) -> Tensor:
    """tau, (B,)."""
    tau: Tensor = process.sigma(t_B) / (process.alpha(t_B) + process.sigma(t_B))
    return tau


def t_from_flow_time(process: NoiseProcess, tau: T) -> T:
    """The process's t of a flow time, limited to [0, 1] (a process may end before pure noise or clean data)."""
    # arctan knows infinity, so that tau = 1 needs no special case
    if isinstance(tau, Tensor):
        t: Tensor = process.t_from_sigma_ratio(tau / (1.0 - tau))
        return t.clamp(0.0, 1.0)
    return min(max(float(process.t_from_sigma_ratio(tau / (1.0 - tau) if tau < 1.0 else float("inf"))), 0.0), 1.0)
