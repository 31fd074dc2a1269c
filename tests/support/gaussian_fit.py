"""Training on Gaussian data with students as rich as the answer, so that a wrong target shows as a wrong map."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from closed_forms import PROCESS, GaussianTeacher, V
from torch import Tensor, nn

from distill_rt.core.table import StepTable, run_table
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose

MEAN, STD = [0.5, -0.3, 0.1], [1.0, 0.5, 0.2]


class GaussianData:
    sample_shape = (3, 1, 1)
    num_classes = 0

    def batch(self, draws: Draws) -> Batch:
        x0 = torch.tensor(MEAN) + torch.tensor(STD) * draws.normal((3,), Purpose.DATA)
        return Batch(x0_BCHW=x0[:, :, None, None], label_B=None)


class AffineOfTime(nn.Module):
    """An affine map whose coefficients are linear between the knots of a uniform grid, over one time or two.

    Every coefficient has its own weights, so Adam learns all noise levels equally fast.
    """

    def __init__(self, dim: int, *, num_times: int = 1, num_knots: int = 25) -> None:
        super().__init__()
        self.num_knots = num_knots
        size = num_knots**num_times
        self.weight = nn.Parameter(torch.zeros(size, dim))
        self.bias = nn.Parameter(torch.zeros(size, dim))

    def forward(self, x: Tensor, *times: Tensor) -> Tensor:
        k = torch.arange(self.num_knots)
        basis = torch.ones(len(x), 1)
        for time_B in times:
            position_B = PROCESS.t_from_model_time(time_B) * (self.num_knots - 1)
            features = (1.0 - (position_B[:, None] - k).abs()).clamp(min=0.0)
            basis = (basis[:, :, None] * features[:, None, :]).flatten(1)
        return (basis @ self.weight)[:, :, None, None] * x + (basis @ self.bias)[:, :, None, None]


def start_at(student: AffineOfTime, x0_of: Callable[[Tensor, float], Tensor]) -> AffineOfTime:
    """Set a student to x0 = x0_of(x, t), an affine map in x, exactly at the knots of t; the same for every second time."""
    per_time = len(student.bias) // student.num_knots
    for i in range(student.num_knots):
        t = i / (student.num_knots - 1)
        x = torch.stack([torch.zeros(3, 1, 1), torch.ones(3, 1, 1)]).double()
        at_zero, at_one = (
            V.target(x, x0_of(x, t).double(), PROCESS.at(torch.full((2,), t).double())).squeeze(-1).squeeze(-1)
        )
        with torch.no_grad():
            rows = slice(i * per_time, (i + 1) * per_time)
            student.bias[rows], student.weight[rows] = at_zero.float(), (at_one - at_zero).float()
    return student


def denoiser(x: Tensor, t: float) -> Tensor:
    """x0 of the exact teacher."""
    time = PROCESS.model_time(torch.full((len(x),), t, dtype=torch.float64))
    return V.to_x0(x, exact_teacher()(x, time), PROCESS.at(torch.full((len(x),), t, dtype=torch.float64)))


def run(network: Any, table: StepTable, z: Tensor, noise: Any = None) -> Tensor:
    def call(net_id: int, x: Any, time: float, second_time: float | None) -> Any:
        times = [torch.full((len(x),), t) for t in (time, second_time) if t is not None]
        with torch.no_grad():
            return network(torch.from_numpy(x).float(), *times).numpy()

    draw = None if noise is None else lambda stream: noise(stream).numpy()
    return torch.from_numpy(run_table(table, z.numpy().astype(np.float64), call, draw))


def fit(
    method: Any,
    phase: Any,
    networks: Any,
    teacher: Any,
    *,
    iterations: int,
    learning_rate: float,
    trained: str = "student",
) -> None:
    optimizer = torch.optim.Adam(networks[trained].parameters(), lr=learning_rate)
    for step in range(phase.start, phase.start + iterations):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - (step - phase.start) / iterations)
        draws = Draws(0, step, 256)
        losses = method.losses(phase, step, networks, teacher, GaussianData().batch(draws), draws)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        method.after_step(phase, step, networks)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def unit(num: int = 256) -> Tensor:
    return torch.randn(num, 3, 1, 1, generator=torch.Generator().manual_seed(1))


def exact_teacher() -> GaussianTeacher:
    return GaussianTeacher(MEAN, STD)
