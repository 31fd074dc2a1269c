"""The law of every noise process: ``x_t = alpha(t) * x0 + sigma(t) * eps``, t in [0, 1], t = 0 data, t = 1 noise.

Every method takes Python floats, numpy arrays or torch tensors (see `array_namespace`) and is differentiable on
tensors. Two quantities identify a noise level whatever the process: ``log_snr = log(alpha^2 / sigma^2)`` and
``sigma_ratio = sigma / alpha`` (the sigma of the same level in variance-exploding coordinates).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from distill_rt.core.array_namespace import Values, array_namespace, broadcast_to_images


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseLevel:
    """One noise level of a process, scalars or shape (B,): what predictions and samplers need to know of it.

    ``alpha, sigma`` and their derivatives in t; ``model_time`` is the time in the network's own units.
    """

    alpha: Values
    sigma: Values
    d_alpha: Values = 0.0
    d_sigma: Values = 0.0
    model_time: Values = 0.0

    def like(self, x: Values) -> NoiseLevel:
        """The same level with axes that broadcast against images x of shape (B, ...)."""
        return NoiseLevel(**{f.name: broadcast_to_images(getattr(self, f.name), x) for f in dataclasses.fields(self)})


DATA = NoiseLevel(alpha=1.0, sigma=0.0)
"""Clean data: where every sampler ends unless told otherwise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NoiseProcess:
    """Base of the noise processes; not used itself."""

    kind: ClassVar[str] = ""

    def alpha(self, t: Values) -> Values:
        raise NotImplementedError

    def sigma(self, t: Values) -> Values:
        raise NotImplementedError

    def d_alpha(self, t: Values) -> Values:
        """d alpha / d t."""
        raise NotImplementedError

    def d_sigma(self, t: Values) -> Values:
        """d sigma / d t."""
        raise NotImplementedError

    def model_time(self, t: Values) -> Values:
        """The time as the network receives it."""
        raise NotImplementedError

    def t_from_model_time(self, time: Values) -> Values:
        raise NotImplementedError

    def t_from_sigma_ratio(self, ratio: Values) -> Values:
        """The t whose ``sigma / alpha`` is `ratio` (0 to inf)."""
        raise NotImplementedError

    def sigma_ratio(self, t: Values) -> Values:
        """``sigma / alpha``: inf where alpha is 0."""
        alpha, sigma = self.alpha(t), self.sigma(t)
        if array_namespace(t) is np:
            with np.errstate(divide="ignore"):
                return np.divide(sigma, alpha)
        return sigma / alpha

    def log_snr(self, t: Values) -> Values:
        """``log(alpha^2 / sigma^2)``: +inf at clean data, -inf at pure noise."""
        xp, ratio = array_namespace(t), self.sigma_ratio(t)
        if xp is np:
            with np.errstate(divide="ignore"):
                return -2.0 * np.log(ratio)
        return -2.0 * xp.log(ratio)

    def t_from_log_snr(self, log_snr: Values) -> Values:
        return self.t_from_sigma_ratio(array_namespace(log_snr).exp(-0.5 * log_snr))

    def init_scale(self, t: float = 1.0) -> float:
        """Standard deviation of the noise that a sampler which starts at t is fed."""
        return float(self.sigma(t))

    def at(self, t: Values) -> NoiseLevel:
        """Everything about noise level t."""
        return NoiseLevel(
            alpha=self.alpha(t),
            sigma=self.sigma(t),
            d_alpha=self.d_alpha(t),
            d_sigma=self.d_sigma(t),
            model_time=self.model_time(t),
        )

    def add_noise(self, x0: Values, eps: Values, t: Values) -> Values:
        """``alpha(t) * x0 + sigma(t) * eps``; x0, eps of shape (B, ...), t a scalar or shape (B,)."""
        return broadcast_to_images(self.alpha(t), x0) * x0 + broadcast_to_images(self.sigma(t), x0) * eps

    def to_json(self) -> dict[str, Any]:
        """``{"kind": ...}`` and every field."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"kind": self.kind} | {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> NoiseProcess:
        """Read any noise process; see `distill_rt.core.process.process_from_json`."""
        from distill_rt.core.process import process_from_json  # the registry knows the classes, so it imports this file

        return process_from_json(data)


def require(condition: bool, message: str) -> None:
    """Raise ValueError with the prefix that all processes share."""
    if not condition:
        raise ValueError(f"noise process: {message}")
