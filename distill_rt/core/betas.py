"""Discrete variance preserving schedules: betas as public checkpoints were trained with, and their products.

Every operation is rounded to float32 in the order of the training code of those checkpoints (DDPM, Stable Diffusion,
diffusers), because a checkpoint is only correct at the levels it was trained on: near clean data, where 1 - alpha_bar is
1e-4, a float64 table differs from theirs in the fourth digit. Tests hold the tables equal to diffusers'.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError

Float32s = NDArray[np.float32]

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def discrete_betas(
    beta_schedule: str,
    *,
    num_train_timesteps: int,
    beta_start: float,
    beta_end: float,
    trained_betas: Sequence[float] | None = None,
) -> Float32s:
    """Per-step noise variances, shape (T,).

    ``linear``: Ho et al. 2020 (section 4). ``scaled_linear``: linear in sqrt(beta), Rombach et al. 2022.
    ``squaredcos_cap_v2``: Nichol & Dhariwal 2021, equation 17, betas capped at 0.999.

    Raises:
        UsageError: unknown schedule.
    """
    if trained_betas is not None:
        return np.asarray(trained_betas, np.float32)
    if beta_schedule == "linear":
        return _linspace(beta_start, beta_end, num_train_timesteps)
    if beta_schedule == "scaled_linear":
        roots = _linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_train_timesteps)
        squares: Float32s = roots * roots
        return squares
    if beta_schedule == "squaredcos_cap_v2":
        t = np.arange(num_train_timesteps + 1) / num_train_timesteps
        alpha_bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        capped: Float32s = np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999).astype(np.float32)
        return capped
    raise UsageError(
        f"beta_schedule must be one of {', '.join(BETA_SCHEDULES)}, got {beta_schedule!r}",
        code="beta-schedule-unknown",
        hint="pass trained_betas for any other schedule",
    )


def alphas_bar(betas: Float32s, *, rescale_zero_snr: bool = False) -> NDArray[np.float64]:
    """``prod(1 - beta)``, shape (T,): float32 values held as float64.

    Args:
        rescale_zero_snr: shift and scale sqrt(alpha_bar) so that the last one is 0 and the first is kept (Lin et al.
            2023, arXiv 2305.08891, algorithm 1).
    """
    one = np.float32(1.0)
    bar = _cumprod(one - betas)
    if rescale_zero_snr:
        root = np.sqrt(bar)
        first, last = root[0], root[-1]
        root = (root - last) * (first / (first - last))
        rescaled = root * root
        alphas = np.concatenate([rescaled[:1], rescaled[1:] / rescaled[:-1]])
        bar = _cumprod(one - (one - alphas))
    return bar.astype(np.float64)


def _cumprod(values: Float32s) -> Float32s:
    """Running product, accumulated in double and rounded once per entry, as torch does on CPU."""
    return np.cumprod(values, dtype=np.float64).astype(np.float32)


def _linspace(start: float, end: float, num: int) -> Float32s:
    """Float32 from both ends towards the middle with fused multiply-add, as torch.linspace computes it on CPU."""
    if num == 1:
        return np.asarray([start], np.float32)
    low, high = np.float32(start), np.float32(end)
    step = float((high - low) / np.float32(num - 1))  # float32 products are exact in double: one rounding, like an FMA
    i = np.arange(num)
    return np.where(i < num // 2, float(low) + step * i, float(high) - step * (num - 1 - i)).astype(np.float32)
