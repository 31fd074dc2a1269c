"""Variance preserving processes: alpha^2 + sigma^2 = 1, written by the angle arctan(sigma / alpha)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.array_namespace import Values, array_namespace, constant_like
from distill_rt.core.betas import BETA_SCHEDULES, alphas_bar, discrete_betas
from distill_rt.core.process_law import NoiseProcess, require

HALF_PI = math.pi / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class _Angular(NoiseProcess):
    """alpha = cos, sigma = sin of an angle in [0, pi/2]: no cancellation anywhere."""

    def angle(self, t: Values) -> Values:
        raise NotImplementedError

    def d_angle(self, t: Values) -> Values:
        raise NotImplementedError

    def alpha(self, t: Values) -> Values:
        # sin of the complement: exactly 0 at the angle pi/2, where cos would leave 6e-17 and a finite SNR.
        return array_namespace(t).sin(HALF_PI - self.angle(t))

    def sigma(self, t: Values) -> Values:
        return array_namespace(t).sin(self.angle(t))

    def d_alpha(self, t: Values) -> Values:
        return -self.sigma(t) * self.d_angle(t)

    def d_sigma(self, t: Values) -> Values:
        return self.alpha(t) * self.d_angle(t)

    def init_scale(self, t: float = 1.0) -> float:
        return 1.0  # the state has unit variance at every level when data have


@dataclass(frozen=True, kw_only=True, slots=True)
class VPLinear(_Angular):
    """The discrete variance preserving process of DDPM and Stable Diffusion, made continuous.

    Timestep i of the discrete process (0 <= i < T, the network's own time) is t = (i + 1) / T, and t = 0 is clean data,
    so ``model_time(t) = t * T - 1``. At t = (i + 1) / T the level is exactly the table's; between two timesteps the
    angle arctan(sigma / alpha) is linear in t (finite at both ends, also with zero terminal SNR). Derivatives belong to the
    interval that ends at t.

    Args:
        beta_start, beta_end, beta_schedule: see `discrete_betas`; the defaults are Stable Diffusion's.
        trained_betas: explicit betas, shape (num_train_timesteps,); the other three are then not used.
        rescale_betas_zero_snr: see `alphas_bar`.
    """

    kind: ClassVar[str] = "vp_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    num_train_timesteps: int = 1000
    trained_betas: tuple[float, ...] | None = None
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        require(self.num_train_timesteps >= 1, f"num_train_timesteps must be >= 1, got {self.num_train_timesteps}")
        require(
            self.beta_schedule in BETA_SCHEDULES,
            f"beta_schedule must be one of {', '.join(BETA_SCHEDULES)}, got {self.beta_schedule!r}",
        )
        require(0 < self.beta_start < 1 and 0 < self.beta_end < 1, "betas must be in (0, 1)")
        if self.trained_betas is not None:
            require(
                len(self.trained_betas) == self.num_train_timesteps,
                f"{len(self.trained_betas)} trained_betas for {self.num_train_timesteps} timesteps",
            )
            require(all(0 < beta < 1 for beta in self.trained_betas), "betas must be in (0, 1)")

    def alphas_bar(self) -> NDArray[np.float64]:
        """alpha^2 at timesteps 0 ... T-1, shape (T,)."""
        return _alphas_bar_of(self)

    def angle(self, t: Values) -> Values:
        xp = array_namespace(t)
        angles = constant_like(_angles_of(self), t)
        position = t * self.num_train_timesteps
        i = self._interval(t)
        return angles[i] + (angles[i + 1] - angles[i]) * xp.clip(position - i, 0.0, 1.0)

    def d_angle(self, t: Values) -> Values:
        angles, i = constant_like(_angles_of(self), t), self._interval(t)
        return (angles[i + 1] - angles[i]) * self.num_train_timesteps

    def _interval(self, t: Values) -> Values:
        """Index i of the interval (i/T, (i+1)/T] that holds t."""
        xp = array_namespace(t)
        # (i + 1) / T * T may round to a neighbour of the integer: the tolerance keeps the grid on its own interval.
        i = xp.clip(xp.ceil(t * self.num_train_timesteps - 1e-9) - 1, 0, self.num_train_timesteps - 1)
        return i.astype(np.int64) if xp is np else i.long()

    def t_from_sigma_ratio(self, ratio: Values) -> Values:
        xp = array_namespace(ratio)
        angle, angles = xp.arctan(ratio), constant_like(_angles_of(self), ratio)
        i = xp.clip(xp.searchsorted(angles, angle) - 1, 0, self.num_train_timesteps - 1)
        return (i + (angle - angles[i]) / (angles[i + 1] - angles[i])) / self.num_train_timesteps

    def model_time(self, t: Values) -> Values:
        return t * self.num_train_timesteps - 1.0

    def t_from_model_time(self, time: Values) -> Values:
        return (time + 1.0) / self.num_train_timesteps


@lru_cache(maxsize=32)
def _alphas_bar_of(process: VPLinear) -> NDArray[np.float64]:
    betas = discrete_betas(
        process.beta_schedule,
        num_train_timesteps=process.num_train_timesteps,
        beta_start=process.beta_start,
        beta_end=process.beta_end,
        trained_betas=process.trained_betas,
    )
    bar = alphas_bar(betas, rescale_zero_snr=process.rescale_betas_zero_snr)
    bar.flags.writeable = False
    return bar


@lru_cache(maxsize=32)
def _angles_of(process: VPLinear) -> NDArray[np.float64]:
    """arctan(sigma / alpha) at t = 0, 1/T, ..., 1, shape (T + 1,)."""
    bar = np.concatenate([[1.0], _alphas_bar_of(process)])
    angles: NDArray[np.float64] = np.arctan2(np.sqrt(1.0 - bar), np.sqrt(bar))
    return angles


@dataclass(frozen=True, kw_only=True, slots=True)
class VPCosine(_Angular):
    """``alpha = cos(pi t / 2)`` with the log SNR limited as in Salimans & Ho 2022 (appendix B and their public code).

    Args:
        log_snr_min, log_snr_max: log SNR at t = 1 and t = 0; None leaves that end unlimited (alpha = 0 or sigma = 0).
        time_scale: the network receives ``time_scale * angle / (pi/2)``, the paper's "inverse cosine" time for scale 1.
    """

    kind: ClassVar[str] = "vp_cosine"
    log_snr_min: float | None = -20.0
    log_snr_max: float | None = 20.0
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        low = -math.inf if self.log_snr_min is None else self.log_snr_min
        high = math.inf if self.log_snr_max is None else self.log_snr_max
        require(low < high, f"log_snr_min must be below log_snr_max, got {low} and {high}")
        require(self.time_scale > 0, f"time_scale must be positive, got {self.time_scale}")

    @property
    def _ends(self) -> tuple[float, float]:
        """Angles at t = 0 and t = 1."""
        low = 0.0 if self.log_snr_max is None else math.atan(math.exp(-0.5 * self.log_snr_max))
        high = HALF_PI if self.log_snr_min is None else math.atan(math.exp(-0.5 * self.log_snr_min))
        return low, high

    def angle(self, t: Values) -> Values:
        low, high = self._ends
        return low + (high - low) * t

    def d_angle(self, t: Values) -> Values:
        low, high = self._ends
        return high - low + 0.0 * t

    def t_from_sigma_ratio(self, ratio: Values) -> Values:
        low, high = self._ends
        return (array_namespace(ratio).arctan(ratio) - low) / (high - low)

    def model_time(self, t: Values) -> Values:
        return self.angle(t) * (self.time_scale / HALF_PI)

    def t_from_model_time(self, time: Values) -> Values:
        low, high = self._ends
        return (time * (HALF_PI / self.time_scale) - low) / (high - low)
