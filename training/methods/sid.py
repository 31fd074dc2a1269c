"""Score identity distillation: the generator follows the gradient of a distance between scores through both networks.

Zhou et al. 2024 (SiD, arXiv 2404.04057), equation 23, data-free: with d = x0_teacher - x0_fake at the generator's noised
image x_t, the loss is ``d . (x0_teacher - x) - alpha d . d`` over mean |x - x0_teacher|; alpha = 1.2 or 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from distill_rt.training.distribution import fake_x0, frozen, matching_time, mean_distance
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.methods.base import check_setting
from distill_rt.training.methods.dmd import DistributionMatching
from distill_rt.training.predictor import Conditions, Teacher


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreIdentity(DistributionMatching):
    """Args: alpha: of the loss, 0.5 to 2; the others as in `DistributionMatching` (`weighting` has no effect here)."""

    name: ClassVar[str] = "sid"

    start: float = 0.6
    alpha: float = 1.0
    weighting: Literal["dmd"] = "dmd"
    pairs_weight: float = 0.0
    score_steps: int = 4
    iterations: int = 8000

    def __post_init__(self) -> None:
        DistributionMatching.__post_init__(self)
        check_setting(0.5 <= self.alpha <= 2.0, f"alpha must be 0.5 to 2, got {self.alpha:g}")

    def matching(
        self, teacher: Teacher, score: nn.Module, images: Tensor, conditions: Conditions, draws: Draws
    ) -> Tensor:
        t_B, spec = matching_time(draws, self.level_power), teacher.spec
        x_t = spec.process.add_noise(images, draws.normal(spec.sample_shape, Purpose.MATCHING_NOISE), t_B)
        real = teacher.x0_with_gradient(x_t, t_B, conditions)
        with frozen(score):
            gap = real - fake_x0(spec, score, x_t, t_B, conditions)
        terms = gap * ((real - images) - self.alpha * gap)
        return (terms / mean_distance(images, real)).mean()
