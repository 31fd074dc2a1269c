"""Teachers with closed forms: what a student must converge to is known exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import NoiseProcess, VPCosine
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import NetworkSpec, StudentSpec
from distill_rt.training.data import Grid25

PROCESS = VPCosine()
V = Parameterization(prediction=Prediction.V)


def v_from_x0(process: NoiseProcess, x: Tensor, x0: Tensor, t_B: Tensor) -> Tensor:
    level = process.at(t_B).like(x)
    return V.target(x, x0, level)


class GaussianTeacher(nn.Module):
    """Exact denoiser of x0 ~ N(mean, diag(std^2)) in v prediction; images are (d, 1, 1)."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64)[:, None, None])
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64)[:, None, None])

    def forward(self, x: Tensor, time_B: Tensor) -> Tensor:
        t_B = PROCESS.t_from_model_time(time_B.double())
        level = PROCESS.at(t_B).like(x)
        gain = level.alpha * self.std**2 / (level.alpha**2 * self.std**2 + level.sigma**2)
        x0 = self.mean + gain * (x.double() - level.alpha * self.mean)
        return v_from_x0(PROCESS, x.double(), x0, t_B).to(x.dtype)

    def flow(self, x: Tensor, t: float = 1.0, s: float = 0.0) -> Tensor:
        """Where the probability flow ODE takes a state from t to s: an affine map."""
        alpha_t, alpha_s = float(PROCESS.alpha(t)), float(PROCESS.alpha(s))
        spread_t = torch.sqrt(alpha_t**2 * self.std**2 + float(PROCESS.sigma(t)) ** 2)
        spread_s = torch.sqrt(alpha_s**2 * self.std**2 + float(PROCESS.sigma(s)) ** 2)
        return alpha_s * self.mean + spread_s / spread_t * (x.double() - alpha_t * self.mean)


class MixtureTeacher(nn.Module):
    """Exact denoiser of the 25 Gaussians in v prediction: a posterior mean over modes. More times change nothing."""

    def __init__(self) -> None:
        super().__init__()
        grid = (torch.arange(5.0) - 2) * Grid25.spacing
        self.register_buffer("centres_M2", torch.cartesian_prod(grid, grid))

    def forward(self, x: Tensor, time_B: Tensor, *_more_times_B: Tensor) -> Tensor:
        t_B = PROCESS.t_from_model_time(time_B)
        level = PROCESS.at(t_B)
        alpha, sigma, std = level.alpha[:, None], level.sigma[:, None], Grid25.mode_std
        points = x.flatten(1)
        variance = alpha**2 * std**2 + sigma**2
        squared = (points[:, None] - alpha[:, None] * self.centres_M2).square().sum(-1)
        weight = torch.softmax(-0.5 * squared / variance, dim=1)
        shrink = alpha * std**2 / variance
        per_mode = self.centres_M2 + shrink[:, None] * (points[:, None] - alpha[:, None] * self.centres_M2)
        x0 = (weight[..., None] * per_mode).sum(1).reshape(x.shape)
        return v_from_x0(PROCESS, x, x0, t_B)


class AffinePerTime(nn.Module):
    """A student that is as rich as the answer: one affine map per time of a grid, so that training is a convex problem."""

    def __init__(self, num_times: int, dim: int) -> None:
        super().__init__()
        self.num_times = num_times
        self.weight = nn.Parameter(torch.zeros(num_times + 1, dim))
        self.bias = nn.Parameter(torch.zeros(num_times + 1, dim))

    def forward(self, x: Tensor, time_B: Tensor) -> Tensor:
        index = (PROCESS.t_from_model_time(time_B) * self.num_times).round().long()
        return self.weight[index][:, :, None, None] * x + self.bias[index][:, :, None, None]


def plain_spec(dim: int, *, name: str = "toy", num_steps: int = 4) -> StudentSpec:
    times = [1.0 - i / num_steps for i in range(num_steps)]
    return StudentSpec(
        name=name,
        sample_shape=(dim, 1, 1),
        process=PROCESS,
        parameterization=V,
        plans={num_steps: ddim(PROCESS, V, times)},
        default_steps=num_steps,
        networks=(NetworkSpec(kind="test-only"),),
        provenance={"data": "grid25"},
    )
