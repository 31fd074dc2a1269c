"""Where to evaluate: discrete timesteps and sigma grids, computed exactly as the schedulers of diffusers compute them.

Timesteps are indices of a discrete process with T training timesteps, falling. Sigmas fall too; what they mean (sigma /
alpha, or the flow time) is the caller's. References: Lin et al. 2023 (arXiv 2305.08891, table 2) for leading, trailing and
linspace; Karras et al. 2022 (equation 5); Esser et al. 2024 (arXiv 2403.03206, equation 23) for the flow shift; Luo et al. 2023
(LCM, section 4.3) for the skipping grid.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError

Floats = NDArray[np.float64]

SPACINGS = ("leading", "trailing", "linspace")


def spaced_timesteps(
    spacing: str, num_steps: int, num_train_timesteps: int, *, steps_offset: int = 0, rounded: bool = True
) -> NDArray[np.float64]:
    """`num_steps` timesteps of [0, num_train_timesteps), falling.

    Args:
        spacing: ``leading`` (multiples of T // N plus `steps_offset`: never reaches T - 1), ``trailing`` (T - 1 and below
            in steps of T / N), ``linspace`` (from T - 1 to 0 inclusive).
        rounded: round linspace to integers (DDIM, DDPM); Euler's schedulers keep the fractions, as float32.

    Raises:
        UsageError: unknown spacing, or `num_steps` outside [1, T].
    """
    require_steps(num_steps, num_train_timesteps)
    if spacing == "linspace":
        grid = np.linspace(0, num_train_timesteps - 1, num_steps, dtype=None if rounded else np.float32)[::-1]
        return (grid.round() if rounded else grid).astype(np.float64)
    if spacing == "leading":
        ratio = num_train_timesteps // num_steps
        timesteps = np.arange(num_steps)[::-1] * ratio + steps_offset
        if timesteps[0] >= num_train_timesteps:
            raise UsageError(
                f"leading spacing with steps_offset {steps_offset} starts at timestep {timesteps[0]}, "
                f"but the last one is {num_train_timesteps - 1}",
                code="timestep-out-of-range",
                hint="use fewer steps, or another timestep_spacing",
            )
        return timesteps.astype(np.float64)
    if spacing == "trailing":
        ratio_real = num_train_timesteps / num_steps
        # For some N above 60 rounding makes numpy's range one too long, and diffusers then visits timestep -1 too.
        return (np.round(np.arange(num_train_timesteps, 0, -ratio_real)) - 1.0)[:num_steps]
    raise unsupported("timestep_spacing", spacing, SPACINGS)


def skipping_timesteps(
    num_steps: int, num_train_timesteps: int, *, original_inference_steps: int = 50
) -> NDArray[np.int64]:
    """Every k-th of the `original_inference_steps` timesteps that an LCM or TCD student was distilled on.

    For 4 steps of 50 over 1000: 999, 759, 499, 259.

    Raises:
        UsageError: more steps than the student was distilled on.
    """
    require_steps(original_inference_steps, num_train_timesteps)
    require_steps(num_steps, original_inference_steps)
    origin = np.arange(1, original_inference_steps + 1) * (num_train_timesteps // original_inference_steps) - 1
    return take_evenly(origin[::-1], num_steps)


def take_evenly(values: NDArray[np.int64], num: int) -> NDArray[np.int64]:
    """`num` of `values` at floor(i * len / num)."""
    indices = np.floor(np.linspace(0, len(values), num=num, endpoint=False)).astype(np.int64)
    taken: NDArray[np.int64] = values[indices]
    return taken


def karras_sigmas(sigma_min: float, sigma_max: float, num: int, *, rho: float = 7.0) -> NDArray[np.float64]:
    """``(smax^(1/rho) + i/(N-1) (smin^(1/rho) - smax^(1/rho)))^rho``, falling."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas: NDArray[np.float64] = (high + np.linspace(0.0, 1.0, num) * (low - high)) ** rho
    return sigmas


def exponential_sigmas(sigma_min: float, sigma_max: float, num: int) -> NDArray[np.float64]:
    """Geometric from sigma_max to sigma_min."""
    return np.exp(np.linspace(math.log(sigma_max), math.log(sigma_min), num))


def shift_flow(sigmas: Floats, shift: float) -> Floats:
    """``shift*s / (1 + (shift - 1)*s)``: more time at high noise for higher resolutions (shift > 1)."""
    shifted: Floats = shift * sigmas / (1 + (shift - 1) * sigmas)
    return shifted


def shift_flow_dynamic(sigmas: Floats, mu: float, kind: Literal["exponential", "linear"] = "exponential") -> Floats:
    """The same shift with e^mu ("exponential") or mu ("linear"); pipelines derive mu from the image size."""
    shift = math.exp(mu) if kind == "exponential" else mu
    shifted: Floats = shift / (shift + (1 / sigmas - 1))
    return shifted


def stretch_to_terminal(sigmas: Floats, terminal: float) -> Floats:
    """Stretch towards the data end so that the last sigma is `terminal` (LTX-Video)."""
    rest = 1 - sigmas
    if rest[-1] == 0:
        raise UsageError(
            "shift_terminal cannot stretch a schedule whose last sigma is 1",
            code="schedule-invalid",
            hint="use more than one step, or leave shift_terminal out",
        )
    stretched: Floats = 1 - rest / (rest[-1] / (1 - terminal))
    return stretched


def sigma_to_timestep(sigmas: Floats, table: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Fractional timesteps of `sigmas`, linear in log sigma between the rising entries of `table`, clipped to its ends."""
    log_table = np.log(table)
    log_sigmas = np.log(np.maximum(sigmas, 1e-10))
    low = np.clip(np.searchsorted(log_table, log_sigmas, side="right") - 1, 0, len(table) - 2)
    weight = np.clip((log_table[low] - log_sigmas) / (log_table[low] - log_table[low + 1]), 0.0, 1.0)
    return np.asarray((1 - weight) * low + weight * (low + 1), np.float64)


def require_steps(num_steps: int, limit: int) -> None:
    """Raise UsageError unless 1 <= num_steps <= limit."""
    if not 1 <= num_steps <= limit:
        raise UsageError(
            f"the number of steps must be between 1 and {limit}, got {num_steps}",
            code="steps-out-of-range",
            hint="the limit is the number of timesteps that the network was trained or distilled on",
            details={"max": limit},
        )


def require_exact(num_steps: int, num_given: int) -> None:
    """Raise UsageError unless as many timesteps or sigmas were given as steps were asked for."""
    if num_steps != num_given:
        raise UsageError(
            f"{num_given} explicit timesteps or sigmas for {num_steps} steps",
            code="steps-mismatch",
            hint="pass as many as there are steps",
        )


def require_falling(timesteps: Sequence[float], num_train_timesteps: int) -> None:
    """Raise UsageError unless explicit timesteps fall strictly within [0, num_train_timesteps)."""
    values = list(timesteps)
    falling = all(later < earlier for earlier, later in itertools.pairwise(values))
    if not values or not falling or values[0] >= num_train_timesteps or values[-1] < 0:
        raise UsageError(
            f"timesteps must fall strictly from below {num_train_timesteps} to at least 0, got {values}",
            code="timesteps-invalid",
            hint="for example 999, 749, 499, 249",
        )


def unsupported(option: str, value: object, supported: Sequence[object]) -> UsageError:
    """The error for an option value that no table of ours reproduces."""
    names = ", ".join(map(str, supported))
    return UsageError(
        f"{option} {value!r} is not supported: use {names}",
        code="option-unsupported",
        hint="change the scheduler configuration",
        details={"option": option, "supported": list(map(str, supported))},
    )
