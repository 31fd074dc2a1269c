"""Discrete variance preserving schedules: betas as public checkpoints were trained with, and their products.

Betas and ``1 - beta`` are rounded to float32 because the training code of those checkpoints does so (DDPM, diffusers);
where beta is close to 1 that rounding is visible. The product is taken in float64.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def discrete_betas(
    beta_schedule: str,
    *,
    num_train_timesteps: int,
    beta_start: float,
    beta_end: float,
    trained_betas: Sequence[float] | None = None,
) -> NDArray[np.float32]:
    """Per-step noise variances, shape (T,).

    ``linear``: Ho et al. 2020 (section 4). ``scaled_linear``: linear in sqrt(beta), Rombach et al. 2022.
    ``squaredcos_cap_v2``: Nichol & Dhariwal 2021, equation 17, betas capped at 0.999.

    Raises:
        UsageError: unknown schedule.
    """
    if trained_betas is not None:
        return np.asarray(trained_betas, np.float32)
    if beta_schedule == "linear":
        return np.linspace(beta_start, beta_end, num_train_timesteps).astype(np.float32)
    if beta_schedule == "scaled_linear":
        roots = np.linspace(math.sqrt(beta_start), math.sqrt(beta_end), num_train_timesteps).astype(np.float32)
        betas: NDArray[np.float32] = roots**2
        return betas
    if beta_schedule == "squaredcos_cap_v2":
        t = np.arange(num_train_timesteps + 1) / num_train_timesteps
        alpha_bar = np.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
        return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], 0.999).astype(np.float32)
    raise UsageError(
        f"beta_schedule must be one of {', '.join(BETA_SCHEDULES)}, got {beta_schedule!r}",
        code="beta-schedule-unknown",
        hint="pass trained_betas for any other schedule",
    )


def alphas_bar(betas: NDArray[np.float32], *, rescale_zero_snr: bool = False) -> NDArray[np.float64]:
    """``prod(1 - beta)``, shape (T,), float64.

    Args:
        rescale_zero_snr: shift and scale sqrt(alpha_bar) so that the last one is 0 and the first is kept (Lin et al.
            2023, arXiv 2305.08891, algorithm 1).
    """
    bar: NDArray[np.float64] = np.cumprod((np.float32(1.0) - betas).astype(np.float64), dtype=np.float64)
    if rescale_zero_snr:
        root = np.sqrt(bar)
        bar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))) ** 2
    return bar
