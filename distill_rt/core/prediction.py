"""What a network's raw output F means: ``x0 = p * x + q * F`` at one noise level.

A `Parameterization` is a prediction type (what F estimates) inside a preconditioning (how input and output are scaled),
for example noise prediction with LCM's boundary, or EDM's. It gives three numbers per level, and with those every
sampler is a table.
All functions work on numpy and on torch; levels come from `NoiseProcess.at`.

Given x = alpha*x0 + sigma*eps: ``v = alpha*eps - sigma*x0`` (Salimans & Ho 2022, section 4), flow
``u = d_alpha*x0 + d_sigma*eps`` (Lipman et al. 2023, equation 20).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, Self

from distill_rt.core.array_namespace import Values
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.core.process import NoiseLevel


class Prediction(StrEnum):
    """What the network estimates."""

    X0 = "x0"
    EPS = "eps"
    V = "v"
    FLOW = "flow"


def x0_coefficients(prediction: Prediction, level: NoiseLevel) -> tuple[Values, Values]:
    """(p, q) with ``x0 = p * x + q * F``.

    Raises:
        UsageError: noise prediction at a scalar level with alpha = 0, which says nothing about x0.
    """
    alpha, sigma = level.alpha, level.sigma
    if prediction is Prediction.X0:
        return 0.0 * alpha, 0.0 * alpha + 1.0
    if prediction is Prediction.EPS:
        if isinstance(alpha, float | int) and alpha == 0:
            raise UsageError(
                "noise prediction says nothing about the image at a level of pure noise (alpha = 0)",
                code="eps-at-zero-snr",
                hint="start lower, or use v, flow or x0 prediction",
            )
        return 1.0 / alpha, -sigma / alpha
    if prediction is Prediction.V:
        norm = alpha**2 + sigma**2
        return alpha / norm, -sigma / norm
    determinant = sigma * level.d_alpha - level.d_sigma * alpha
    return -level.d_sigma / determinant, sigma / determinant


@dataclass(frozen=True, kw_only=True, slots=True)
class Preconditioning:
    """Base, and also the neutral choice: the network sees x, and its output is the prediction."""

    kind: ClassVar[str] = "none"

    def scalings(self, level: NoiseLevel) -> tuple[Values, Values, Values]:
        """(skip, out, c_in): ``x0 = skip * x + out * inner(F)`` for network input ``c_in * x``."""
        zero = 0.0 * level.alpha
        return zero, zero + 1.0, zero + 1.0

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind} | {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass(frozen=True, kw_only=True, slots=True)
class EDMPreconditioning(Preconditioning):
    """Karras et al. 2022, table 1, at ``sigma / alpha`` (so that any process may use it). Used with prediction x0."""

    kind: ClassVar[str] = "edm"
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _require_positive("sigma_data", self.sigma_data)

    def scalings(self, level: NoiseLevel) -> tuple[Values, Values, Values]:
        # Multiplied out by alpha, so that pure noise (alpha = 0, ratio = inf) needs no special case.
        alpha, sigma, data = level.alpha, level.sigma, self.sigma_data
        norm = sigma**2 + (alpha * data) ** 2
        return alpha * data**2 / norm, sigma * data / norm**0.5, 1.0 / norm**0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsistencyBoundary(Preconditioning):
    """EDM's scalings shifted so that f(x, sigma_min) = x: Song et al. 2023, appendix C. Used with prediction x0."""

    kind: ClassVar[str] = "consistency"
    sigma_min: float = 0.002
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _require_positive("sigma_data", self.sigma_data)
        if self.sigma_min < 0:
            raise ValueError(f"preconditioning: sigma_min must not be negative, got {self.sigma_min}")

    def scalings(self, level: NoiseLevel) -> tuple[Values, Values, Values]:
        alpha, sigma, data = level.alpha, level.sigma, self.sigma_data
        norm = sigma**2 + (alpha * data) ** 2
        shifted = sigma - alpha * self.sigma_min
        skip = alpha * data**2 / (shifted**2 + (alpha * data) ** 2)
        return skip, shifted * data / norm**0.5, 1.0 / norm**0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class LCMBoundary(Preconditioning):
    """Luo et al. 2023 (LCM, section 4.1): c_skip and c_out of the scaled timestep around any prediction of x0."""

    kind: ClassVar[str] = "lcm"
    sigma_data: float = 0.5
    timestep_scaling: float = 10.0

    def __post_init__(self) -> None:
        _require_positive("sigma_data", self.sigma_data)
        _require_positive("timestep_scaling", self.timestep_scaling)

    def scalings(self, level: NoiseLevel) -> tuple[Values, Values, Values]:
        scaled, data = level.model_time * self.timestep_scaling, self.sigma_data
        norm = scaled**2 + data**2
        return data**2 / norm, scaled / norm**0.5, 0.0 * norm + 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class TrigPreconditioning(Preconditioning):
    """TrigFlow (Lu & Song 2024, equation 9): ``x0 = cos*x - sin*sigma_data*F``, input ``x / sigma_data``.

    Used with prediction x0.
    """

    kind: ClassVar[str] = "trig"
    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        _require_positive("sigma_data", self.sigma_data)

    def scalings(self, level: NoiseLevel) -> tuple[Values, Values, Values]:
        # Any process maps to TrigFlow at sin/cos = sigma / (alpha * sigma_data); its state is x / norm.
        alpha, sigma, data = level.alpha, level.sigma, self.sigma_data
        norm = (alpha**2 + (sigma / data) ** 2) ** 0.5
        return alpha / norm**2, -sigma / norm, 1.0 / (norm * data)


PRECONDITIONINGS: Mapping[str, type[Preconditioning]] = {
    c.kind: c for c in (Preconditioning, EDMPreconditioning, ConsistencyBoundary, LCMBoundary, TrigPreconditioning)
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameterization:
    """A prediction type inside a preconditioning: all that a table must know of a network."""

    prediction: Prediction = Prediction.EPS
    preconditioning: Preconditioning = Preconditioning()

    def __post_init__(self) -> None:
        on_x0 = EDMPreconditioning | ConsistencyBoundary | TrigPreconditioning
        if isinstance(self.preconditioning, on_x0) and self.prediction is not Prediction.X0:
            raise ValueError(
                f"parameterization: {self.preconditioning.kind} preconditioning defines x0 itself: use prediction x0, "
                f"got {self.prediction}"
            )

    def coefficients(self, level: NoiseLevel) -> tuple[Values, Values, Values]:
        """(p, q, c_in) at `level`: ``F = net(c_in * x)``, ``x0 = p * x + q * F``."""
        p, q = x0_coefficients(self.prediction, level)
        skip, out, c_in = self.preconditioning.scalings(level)
        return skip + out * p, out * q, c_in

    def to_x0(self, x: Values, F: Values, level: NoiseLevel) -> Values:
        """x0 from the raw output; x, F of shape (B, ...), the level scalar or (B,)."""
        p, q, _ = self.coefficients(level.like(x))
        return p * x + q * F

    def target(self, x: Values, x0: Values, level: NoiseLevel) -> Values:
        """The raw output F with which `to_x0` returns x0: what training regresses on in the network's own scale."""
        p, q, _ = self.coefficients(level.like(x))
        return (x0 - p * x) / q

    def to_json(self) -> dict[str, Any]:
        return {"prediction": str(self.prediction), "preconditioning": self.preconditioning.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`.

        Raises:
            ArtifactError: unknown keys or kinds, or values out of range.
        """
        try:
            if set(data) != {"prediction", "preconditioning"}:
                raise ValueError(f"expected prediction and preconditioning, got {sorted(data)}")
            inner = dict(data["preconditioning"])
            kind = PRECONDITIONINGS[inner.pop("kind")]
            if any(isinstance(value, bool) or not isinstance(value, int | float) for value in inner.values()):
                raise ValueError(f"preconditioning {kind.kind}: expected numbers, got {inner}")
            return cls(prediction=Prediction(data["prediction"]), preconditioning=kind(**inner))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"this is not a parameterization: {error}",
                code="parameterization-invalid",
                hint="the file was edited or written by another version",
            ) from error


def as_parameterization(prediction: Prediction | Parameterization) -> Parameterization:
    """A bare prediction type means no preconditioning."""
    return prediction if isinstance(prediction, Parameterization) else Parameterization(prediction=prediction)


def to_eps(x: Values, x0: Values, level: NoiseLevel) -> Values:
    """``(x - alpha*x0) / sigma``."""
    level = level.like(x)
    return (x - level.alpha * x0) / level.sigma


def to_v(x: Values, x0: Values, level: NoiseLevel) -> Values:
    """``alpha*eps - sigma*x0``."""
    eps, level = to_eps(x, x0, level), level.like(x)
    return level.alpha * eps - level.sigma * x0


def to_flow(x: Values, x0: Values, level: NoiseLevel) -> Values:
    """``d_alpha*x0 + d_sigma*eps``."""
    eps, level = to_eps(x, x0, level), level.like(x)
    return level.d_alpha * x0 + level.d_sigma * eps


def ddim_jump(x_t: Values, x0: Values, level_t: NoiseLevel, level_s: NoiseLevel) -> Values:
    """``x_s = alpha_s*x0 + sigma_s*eps``, eps implied by (x_t, x0): Song et al. 2021 (DDIM), equation 12 with eta 0."""
    t, s = level_t.like(x_t), level_s.like(x_t)
    return s.alpha * x0 + (s.sigma / t.sigma) * (x_t - t.alpha * x0)


def inverse_ddim_target(x_t: Values, x_s: Values, level_t: NoiseLevel, level_s: NoiseLevel) -> Values:
    """The x0 with which one `ddim_jump` from x_t lands on x_s (Salimans & Ho 2022, appendix G).

    The two levels must differ in SNR; where they coincide the answer is 0/0.
    """
    t, s = level_t.like(x_t), level_s.like(x_t)
    ratio = s.sigma / t.sigma
    return (x_s - ratio * x_t) / (s.alpha - ratio * t.alpha)


def _require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ValueError(f"preconditioning: {name} must be positive, got {value}")
