"""Score-regularised consistency: the consistency student is also told where its images are unlike the teacher's.

Zheng et al. 2025 (rCM, arXiv 2510.08431): the loss of `scm` at noised data, which covers every mode, plus `matching_weight`
times the distribution matching of `dmd2` on the student's own images, which sharpens them. The network that knows the
student's images trains in the same optimiser step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from distill_rt.core.spec import StudentSpec
from distill_rt.training.consistency import require_boundary
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws
from distill_rt.training.methods.base import Networks, Phase, check_setting
from distill_rt.training.methods.dmd2 import ImprovedDistributionMatching
from distill_rt.training.methods.scm import SimplifiedConsistency
from distill_rt.training.predictor import Teacher


@dataclass(frozen=True, kw_only=True, slots=True)
class RegularizedConsistency(SimplifiedConsistency):
    """Score-regularised consistency.

    Args:
        steps: largest plan, whose states the matching sees; every power of two below it is offered too.
        matching_weight: of the distribution matching.
        score_steps: updates of the score network for every one that the matching gives the student.
        level_power: of the matching, as for `dmd`.
        plan_power: 1, because the matching trains on the states of the uniform plan.

    The others as in `SimplifiedConsistency`.
    """

    name: ClassVar[str] = "rcm"
    follows_trajectory: ClassVar[bool] = False

    source: Literal["teacher"] = "teacher"
    matching_weight: float = 0.5
    score_steps: int = 2
    level_power: float = 1.0
    plan_power: float = 1.0

    def __post_init__(self) -> None:
        SimplifiedConsistency.__post_init__(self)
        check_setting(
            self.matching_weight > 0.0,
            f"matching_weight must be positive (without matching it is scm), got {self.matching_weight:g}",
        )
        check_setting(self.score_steps >= 1, f"score_steps must be at least 1, got {self.score_steps}")
        check_setting(self.level_power > 0.0, f"level_power must be positive, got {self.level_power:g}")

    @property
    def matcher(self) -> ImprovedDistributionMatching:
        # Told the step, the score network had no gain here (docs/log.md).
        return ImprovedDistributionMatching(
            steps=self.steps, start=1.0, score="shared", score_steps=self.score_steps, level_power=self.level_power
        )

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        require_boundary(teacher)
        if self.iterations < 1:
            return ()
        return (Phase(name=self.name, network="both", start=0, iterations=self.iterations),)

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        return self.matcher.networks(teacher)

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        losses = SimplifiedConsistency.losses(self, phase, step, networks, teacher, batch, draws)
        matching = self.matcher.losses(phase, step, networks, teacher, batch, draws)
        if "matching" in matching:
            matching["matching"] = self.matching_weight * matching["matching"]
        return losses | matching
