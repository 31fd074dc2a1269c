"""Improved distribution matching: several steps by backward simulation, no pairs, the fake denoiser trained more often.

Yin et al. 2024 (DMD2, arXiv 2405.14867), sections 4.2 and 4.4, without their adversarial head: the generator's input at a
random step of its own re-noising sampler is what its sampler would bring there, so that training sees what generation sees.

The images of every step have a law of their own, and each is to be the data's. A score network that knows only their mixture
lets one step lack what another has too much of, and generation takes the last step alone; so it is told the step (as in `tdm`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distill_rt.core.spec import StudentSpec
from distill_rt.training.consistency import renoise_plans
from distill_rt.training.data import Batch
from distill_rt.training.distribution import GeneratorAndScore, Told, score_loss
from distill_rt.training.draws import Draws
from distill_rt.training.methods.base import Networks, Phase, check_setting, check_start
from distill_rt.training.methods.dmd import DistributionMatching
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Predictor, Teacher
from distill_rt.training.rollout import renoised_states, spread_rows
from distill_rt.training.student import distilled_contract, draw_conditions, embed_second_time, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class ImprovedDistributionMatching(DistributionMatching):
    """Improved distribution matching (DMD2).

    Args:
        steps: of the student.
        score: what the score network knows: the step that made an image (``step``), or the images of all steps as one law, as
            the paper has it (``shared``), one step a batch. Networks that read prompts take no second time and share theirs.

    The others as in `DistributionMatching`.
    """

    name: ClassVar[str] = "dmd2"

    steps: int = 4
    start: float = 0.75
    score: Literal["step", "shared"] = "step"
    level_power: float = 2.0
    score_steps: int = 4
    pairs_weight: float = 0.0
    iterations: int = 6000

    def __post_init__(self) -> None:
        check_setting(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        check_setting(self.score_steps >= 1, f"score_steps must be at least 1, got {self.score_steps}")
        check_setting(self.level_power > 0.0, f"level_power must be positive, got {self.level_power:g}")
        check_start(self.start)
        check_setting(self.pairs_weight == 0.0, f"dmd2 has no pairs, got pairs_weight={self.pairs_weight:g}")

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        plans = {self.steps: renoise_plans(teacher, self.steps, start=self.start)[self.steps]}
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        spec = self.contract(teacher.spec)
        score = embed_second_time(spec) if self.tells_rows(spec) else spec
        both = GeneratorAndScore(student_network(teacher, spec), student_network(teacher, score))
        return {"student": both.student, "both": both}

    def tells_rows(self, spec: StudentSpec) -> bool:
        """Whether the score network is told which row made an image."""
        return self.steps > 1 and self.score == "step" and spec.condition.kind != "text"

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, both = teacher.spec, networks["both"]
        assert isinstance(both, GeneratorAndScore)
        conditions = draw_conditions(spec, batch, draws)
        predictor = Predictor.of(spec, both.student)
        tells_rows, turn = self.tells_rows(spec), step // self.score_steps  # every row has its turn in steps that move
        if tells_rows:
            row_B = spread_rows(self.steps, turn, draws)
        else:
            row_B = torch.full((draws.num_samples,), turn % self.steps, device=draws.device)
        times = uniform_times(self.steps, start=self.start)
        t_B = torch.tensor(times, device=draws.device)[row_B]
        x = renoised_states(predictor, spec.sample_shape, times, row_B, conditions, draws)
        moves = step % self.score_steps == 0
        with torch.set_grad_enabled(moves):
            images = predictor.x0(x, t_B, conditions)
        score = Told(both.score, spec.process.model_time(t_B)) if tells_rows else both.score
        losses = {"score": score_loss(spec, score, images, conditions, draws)}
        if moves:
            losses["matching"] = self.matching(teacher, score, images, conditions, draws)
        return losses
