"""The noise process from one level up to another by fresh noise: ``q(x_t | x_s) = N(k x_s, a^2)``, s < t, with
k = alpha_t / alpha_s and a^2 = sigma_t^2 - k^2 sigma_s^2. The samplers' own form is in `core.samplers.ddim`.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from distill_rt.core.process import NoiseProcess


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """From s up to t, shapes that broadcast against images: k, a, and the two sigmas and alphas."""

    k: Tensor
    a: Tensor
    alpha_s: Tensor
    sigma_s: Tensor
    sigma_t: Tensor

    def up(self, x_s: Tensor, z: Tensor) -> Tensor:
        """A draw of q(x_t | x_s)."""
        return self.k * x_s + self.a * z


def transition(process: NoiseProcess, s_B: Tensor, t_B: Tensor, like_BCHW: Tensor) -> Transition:
    """Between the levels of each image, in float64 inside: a is a difference of squares."""
    s, t = process.at(s_B.double()).like(like_BCHW), process.at(t_B.double()).like(like_BCHW)
    k = t.alpha / s.alpha
    a = (t.sigma**2 - (k * s.sigma) ** 2).clamp(min=0.0).sqrt()
    values = {"k": k, "a": a, "alpha_s": s.alpha, "sigma_s": s.sigma, "sigma_t": t.sigma}
    return Transition(**{name: value.to(like_BCHW.dtype) for name, value in values.items()})
