"""Metrics and weights that the methods share: pure functions of predictions and noise levels.

Legend: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distill_rt.core.process import NoiseLevel
from distill_rt.core.spec import StudentSpec
from distill_rt.training.predictor import Conditions, Predictor


def squared_error(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Mean over an image's elements, shape (B,)."""
    return (a_BCHW - b_BCHW).square().flatten(1).mean(dim=1)


def pseudo_huber(a_BCHW: Tensor, b_BCHW: Tensor, c: float = 0.00054) -> Tensor:
    """``sqrt(|a - b|^2 + c_d^2) - c_d`` with c_d = c * sqrt(d), shape (B,): Song & Dhariwal 2023 (iCT), section 3.3.

    d is the number of elements of an image.
    """
    squared = (a_BCHW - b_BCHW).square().flatten(1).sum(dim=1)
    c_d = c * math.sqrt(a_BCHW[0].numel())
    return torch.sqrt(squared + c_d**2) - c_d


def denoising_error(
    spec: StudentSpec, network: nn.Module, x0: Tensor, t_B: Tensor, eps: Tensor, c: Conditions
) -> Tensor:
    """Squared error of the network's raw output for a noised image, shape (B,): what every diffusion model trains on."""
    x_t = spec.process.add_noise(x0, eps, t_B)
    q = spec.parameterization.coefficients(spec.process.at(t_B))[1]
    error: Tensor = squared_error(Predictor.of(spec, network).x0(x_t, t_B, c), x0) / q**2
    return error


def truncated_snr(level_B: NoiseLevel) -> Tensor:
    """``max(alpha^2 / sigma^2, 1)``, shape (B,): Salimans & Ho 2022, section 4."""
    snr: Tensor = (level_B.alpha / level_B.sigma) ** 2
    return snr.clamp(min=1.0)
