"""Noise processes by name: the variance exploding, flow and trigonometric ones, the registry, and change of process.

Import every process, `NoiseProcess` and `NoiseLevel` from here. Each is a small frozen dataclass that writes itself as
JSON (``{"kind": ..., fields}``); `process_from_json` reads any of them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from distill_rt.core.array_namespace import Values, array_namespace
from distill_rt.core.errors import ArtifactError
from distill_rt.core.process_law import DATA, NoiseLevel, NoiseProcess, require
from distill_rt.core.variance_preserving import VPCosine, VPLinear

__all__ = [
    "NoiseProcess",
    "NoiseLevel",
    "DATA",
    "VPLinear",
    "VPCosine",
    "EDM",
    "RectifiedFlow",
    "Trig",
    "PROCESSES",
    "process_from_json",
    "convert",
]

HALF_PI = math.pi / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class EDM(NoiseProcess):
    """Variance exploding, alpha = 1, on the grid of Karras et al. 2022 (equation 5) made continuous.

    ``sigma(t) = (sigma_min^(1/rho) + t (sigma_max^(1/rho) - sigma_min^(1/rho)))^rho``: t = 0 is sigma_min, the lowest
    level that the network knows; samplers end at clean data (sigma = 0) by default.

    Args:
        time_scale: the network receives ``time_scale * ln(sigma) / 4``; 1 in EDM, 1000 in Song et al. 2023 (consistency
            models). Mixing the two silently ruins a student.
    """

    kind: ClassVar[str] = "edm"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        require(0 < self.sigma_min < self.sigma_max, "needs 0 < sigma_min < sigma_max")
        require(self.rho > 0 and self.time_scale > 0, "rho and time_scale must be positive")

    @property
    def _roots(self) -> tuple[float, float]:
        return self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)

    def alpha(self, t: Values) -> Values:
        return 1.0 + 0.0 * t

    def sigma(self, t: Values) -> Values:
        low, high = self._roots
        return array_namespace(t).clip(_array(low + t * (high - low)), 0.0, None) ** self.rho

    def d_alpha(self, t: Values) -> Values:
        return 0.0 * t

    def d_sigma(self, t: Values) -> Values:
        low, high = self._roots
        base = array_namespace(t).clip(_array(low + t * (high - low)), 0.0, None)
        return self.rho * (high - low) * base ** (self.rho - 1.0)

    def t_from_sigma_ratio(self, ratio: Values) -> Values:
        low, high = self._roots
        return (ratio ** (1 / self.rho) - low) / (high - low)

    def model_time(self, t: Values) -> Values:
        return array_namespace(t).log(self.sigma(t)) * (self.time_scale / 4)

    def t_from_model_time(self, time: Values) -> Values:
        return self.t_from_sigma_ratio(array_namespace(time).exp(time * (4 / self.time_scale)))


@dataclass(frozen=True, kw_only=True, slots=True)
class RectifiedFlow(NoiseProcess):
    """``alpha = 1 - t, sigma = t`` (Liu et al. 2022, with noise at t = 1); the network receives ``time_scale * t``."""

    kind: ClassVar[str] = "rectified_flow"
    time_scale: float = 1000.0

    def __post_init__(self) -> None:
        require(self.time_scale > 0, f"time_scale must be positive, got {self.time_scale}")

    def alpha(self, t: Values) -> Values:
        return 1.0 - t

    def sigma(self, t: Values) -> Values:
        return 1.0 * t

    def d_alpha(self, t: Values) -> Values:
        return 0.0 * t - 1.0

    def d_sigma(self, t: Values) -> Values:
        return 0.0 * t + 1.0

    def t_from_sigma_ratio(self, ratio: Values) -> Values:
        return 1.0 - 1.0 / (1.0 + ratio)  # and not ratio / (1 + ratio), which is nan at infinity

    def model_time(self, t: Values) -> Values:
        return t * self.time_scale

    def t_from_model_time(self, time: Values) -> Values:
        return time / self.time_scale


@dataclass(frozen=True, kw_only=True, slots=True)
class Trig(NoiseProcess):
    """TrigFlow (Lu & Song 2024, equation 8): ``alpha = cos(angle), sigma = sigma_data * sin(angle), angle = pi/2 * t``.

    The network receives ``time_scale * angle`` (radians for scale 1).
    """

    kind: ClassVar[str] = "trig"
    sigma_data: float = 0.5
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        require(self.sigma_data > 0 and self.time_scale > 0, "sigma_data and time_scale must be positive")

    def alpha(self, t: Values) -> Values:
        return array_namespace(t).sin(HALF_PI * (1.0 - t))  # exactly 0 at t = 1

    def sigma(self, t: Values) -> Values:
        return array_namespace(t).sin(HALF_PI * t) * self.sigma_data

    def d_alpha(self, t: Values) -> Values:
        return array_namespace(t).sin(HALF_PI * t) * -HALF_PI

    def d_sigma(self, t: Values) -> Values:
        return array_namespace(t).sin(HALF_PI * (1.0 - t)) * (HALF_PI * self.sigma_data)

    def t_from_sigma_ratio(self, ratio: Values) -> Values:
        return array_namespace(ratio).arctan(ratio / self.sigma_data) / HALF_PI

    def model_time(self, t: Values) -> Values:
        return t * (HALF_PI * self.time_scale)

    def t_from_model_time(self, time: Values) -> Values:
        return time / (HALF_PI * self.time_scale)


def _array(value: Values) -> Values:
    """A Python float as a numpy scalar (its clip takes one-sided bounds); arrays unchanged."""
    return np.float64(value) if isinstance(value, float) else value


PROCESSES: Mapping[str, type[NoiseProcess]] = {c.kind: c for c in (VPLinear, VPCosine, EDM, RectifiedFlow, Trig)}


def process_from_json(data: Mapping[str, Any]) -> NoiseProcess:
    """Read any noise process.

    Raises:
        ArtifactError: unknown kind, unknown keys, wrong types or values out of range.
    """
    if not isinstance(data, Mapping) or data.get("kind") not in PROCESSES:
        kind = data.get("kind") if isinstance(data, Mapping) else data
        raise _invalid(f"kind must be one of {', '.join(PROCESSES)}, got {kind!r}")
    cls = PROCESSES[data["kind"]]
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields) - {"kind"})
    if unknown:
        raise _invalid(f"{cls.kind} has no {', '.join(unknown)}")
    try:
        return cls(**{name: _field(str(fields[name].type), data[name]) for name in fields if name in data})
    except (TypeError, ValueError) as error:
        raise _invalid(str(error)) from error


def _field(kind: str, value: Any) -> Any:
    if value is None and "None" in kind:
        return None
    if kind == "bool" or isinstance(value, bool):
        if kind != "bool" or not isinstance(value, bool):
            raise TypeError(f"expected {kind}, got {value!r}")
        return value
    if kind.startswith("tuple"):
        return tuple(float(item) for item in value)
    if kind == "int" and not isinstance(value, int):
        raise TypeError(f"expected an integer, got {value!r}")
    if kind == "str" and not isinstance(value, str):
        raise TypeError(f"expected a string, got {value!r}")
    if kind.startswith("float"):
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise TypeError(f"expected a finite number, got {value!r}")
        return float(value)
    return value


def _invalid(message: str) -> ArtifactError:
    return ArtifactError(
        f"this is not a noise process: {message}",
        code="process-invalid",
        hint="the file was edited or written by another version",
    )


def convert(t: Values, source: NoiseProcess, target: NoiseProcess) -> tuple[Values, Values]:
    """Change of process at equal SNR.

    Returns:
        (scale, t_target): ``x_target = scale * x_source`` is a state of `target` at time ``t_target`` with the same x0
        and eps. Where the source level is pure noise (alpha = 0) the target must reach it too.
    """
    t_target = target.t_from_sigma_ratio(source.sigma_ratio(t))
    # The ratio of alphas is 0/0 at pure noise, that of sigmas at clean data; that of norms is finite everywhere and
    # equal to both elsewhere.
    xp = array_namespace(t)
    norm_source = xp.sqrt(source.alpha(t) ** 2 + source.sigma(t) ** 2)
    norm_target = xp.sqrt(target.alpha(t_target) ** 2 + target.sigma(t_target) ** 2)
    return norm_target / norm_source, t_target
