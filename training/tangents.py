"""How a prediction changes along a trajectory: its derivative, or its change over an interval.

Continuous-time methods (MeanFlow, sCM) move a network's prediction with the probability flow ODE and ask how fast it changes.
`derivative` answers with a Jacobian-vector product. That is the limit of ever shorter intervals, and it is only as good as the
network is smooth in t: diffusers' time features turn by up to 1,000 radians for a unit of t, and what a network of such
features does between the times that it was trained on is noise (docs/methods.md has figures). The same identities hold exactly
between two points of one trajectory, `earlier` makes the second one; an interval that the features resolve is the default.

The trajectory is the teacher's, or, from data, the straight one of x0 and its noise, whose mean over all pairs is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import to_flow
from distill_rt.core.process import NoiseProcess
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.student import draw_conditions

Source = Literal["teacher", "data"]
"""Whose trajectories they are."""

MIN_TIME, SHORTEST = 0.01, 0.001
"""Lowest time that is drawn, and the shortest interval: below, differences of float32 states lose their digits."""


def check_interval(interval: float) -> None:
    """Refuse an interval that is none; 0 stands for the derivative.

    Raises:
        UsageError: any other that is not `SHORTEST` to 0.5.
    """
    if interval != 0.0 and not SHORTEST <= interval <= 0.5:
        raise UsageError(
            f"interval must be 0 (the derivative) or {SHORTEST:g} to 0.5, got {interval:g}", code="setting-invalid"
        )


def conditions_of(source: Source, teacher: Teacher, batch: Batch, draws: Draws) -> Conditions:
    """Data know no guidance."""
    if source == "data":
        return Conditions(label_B=batch.label_B, text_BLD=batch.text_BLD)
    return draw_conditions(teacher.spec, batch, draws)


def slope(process: NoiseProcess, x_BCHW: Tensor, x0_BCHW: Tensor, t_B: Tensor) -> Tensor:
    """dx/dt of the probability flow ODE for a denoiser's x0, of the straight trajectory for the data's. Needs t > 0."""
    dx: Tensor = to_flow(x_BCHW, x0_BCHW, process.at(t_B))
    return dx


def earlier(
    teacher: Teacher, x_t: Tensor, t_B: Tensor, m_B: Tensor, conditions: Conditions, data: Tensor | None
) -> Tensor:
    """The point at m < t of the trajectory through x_t: the teacher's by one step of second order, or that of `data`."""
    if data is None:
        return teacher.step(x_t, t_B, m_B, conditions, order=2)
    return teacher.step_with(x_t, data, t_B, m_B)


class _OpenGroupNorm(TorchFunctionMode):
    """Group normalisation written out: torch's own forward-mode formula (2.13) fails where channels are innermost in memory."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return (_group_norm if func is nn.functional.group_norm else func)(*args, **(kwargs or {}))


def _group_norm(
    x_BCHW: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    grouped = x_BCHW.reshape(len(x_BCHW), num_groups, -1)
    variance, mean = torch.var_mean(grouped, dim=2, correction=0, keepdim=True)
    out = ((grouped - mean) * torch.rsqrt(variance + eps)).reshape(x_BCHW.shape)
    shape = (1, -1) + (1,) * (x_BCHW.ndim - 2)
    out = out if weight is None else out * weight.reshape(shape)
    return out if bias is None else out + bias.reshape(shape)


def derivative(function: Callable[[Tensor, Tensor], Tensor], x_BCHW: Tensor, t_B: Tensor, slope_BCHW: Tensor) -> Tensor:
    """d/dt of ``function(x, t)`` while x moves with `slope_BCHW`, without gradients, (B, C, H, W).

    Forward-mode differentiation; fused attention knows none, so attention is computed in the open meanwhile.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), _OpenGroupNorm():
        change: Tensor = torch.func.jvp(function, (x_BCHW, t_B), (slope_BCHW, torch.ones_like(t_B)))[1]
    return change
