"""Distribution matching distillation: a one-step generator whose images the teacher cannot tell from its own.

Yin et al. 2024 (DMD, arXiv 2311.18828), algorithm 1. Gradient of the generator: ``w (x0_fake - x0_teacher)`` at its noised
image, where `fake` is a denoiser trained on the generator's images. Laws of w:

* ``dmd``: 1 / mean |x - x0_teacher| per image (their equation 8), with regression on the teacher's own pairs beside it.
* ``vsd``: sigma (the weight of variational score distillation, Wang et al. 2023, in x0).
* ``diff_instruct``: 1 (Luo et al. 2023).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distill_rt.core.samplers.consistency import one_step
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.spec import StudentSpec
from distill_rt.training.data import Batch
from distill_rt.training.distribution import (
    GeneratorAndScore,
    fake_x0,
    follow,
    generate,
    matching_time,
    mean_distance,
    score_loss,
)
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.losses import squared_error
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting, check_start
from distill_rt.training.pairs import PairCache
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.student import distilled_contract, draw_conditions, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class DistributionMatching(OneStage):
    """Distribution matching distillation (DMD).

    Args:
        steps: 1.
        start: process time that the generator is told for its noise. At 1 its first weights answer the mean of the data, below
            images of all kinds (DMD2 tells Stable Diffusion XL 399 of 1,000 for one step, SiD sigma 2.5 of 80).
        weighting: law of w.
        level_power: above 1 the scores are compared at little noise more often (`matching_time`).
        score_steps: updates of the fake denoiser for every update of the generator.
        pairs_weight: of the regression on the teacher's pairs; 0 makes none.
        num_pairs, teacher_steps: how many pairs, and steps of DPM-Solver++(2M) that make them.
    """

    name: ClassVar[str] = "dmd"
    follows_trajectory: ClassVar[bool] = False

    steps: int = 1
    start: float = 1.0
    weighting: Literal["dmd", "vsd", "diff_instruct"] = "dmd"
    level_power: float = 1.0
    score_steps: int = 1
    pairs_weight: float = 0.25
    num_pairs: int = 8192
    teacher_steps: int = 32
    iterations: int = 2500
    peak_learning_rate: float = 5e-4

    def __post_init__(self) -> None:
        check_setting(self.steps == 1, f"{self.name} makes students of one step, got steps={self.steps}")
        check_start(self.start)
        check_setting(self.score_steps >= 1, f"score_steps must be at least 1, got {self.score_steps}")
        check_setting(self.level_power > 0.0, f"level_power must be positive, got {self.level_power:g}")
        check_setting(self.pairs_weight >= 0.0, f"pairs_weight must not be negative, got {self.pairs_weight:g}")
        check_setting(
            self.teacher_steps >= 1 and self.num_pairs >= 1,
            f"teacher_steps and num_pairs must be at least 1, got {self.teacher_steps} and {self.num_pairs}",
        )

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        if self.iterations < 1:
            return ()
        return (Phase(name=self.name, network="both", start=0, iterations=self.iterations),)

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        plans = {1: one_step(teacher.process, teacher.parameterization, time=self.start)}
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=1, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        spec = self.contract(teacher.spec)
        both = GeneratorAndScore(student_network(teacher, spec), student_network(teacher, spec))
        networks = {"student": both.student, "both": both}
        return networks | (
            {"pairs": PairCache(teacher.spec, self.num_pairs, self.batch_size)} if self.pairs_weight else {}
        )

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, both = teacher.spec, networks["both"]
        assert isinstance(both, GeneratorAndScore)
        conditions = draw_conditions(spec, batch, draws)
        moves = step % self.score_steps == 0
        with torch.set_grad_enabled(moves):
            images = generate(spec, both.student, draws.normal(spec.sample_shape), conditions, self.start)
        losses = {"score": score_loss(spec, both.score, images, conditions, draws)}
        if not moves:
            return losses
        losses["matching"] = self.matching(teacher, both.score, images, conditions, draws)
        if self.pairs_weight:
            cache = networks["pairs"]
            assert isinstance(cache, PairCache)
            table = dpmpp_2m(spec.process, spec.parameterization, uniform_times(self.teacher_steps))
            pairs = cache.next(teacher, table, batch, draws)
            made = generate(spec, both.student, pairs.z_BCHW, pairs.conditions, self.start)
            losses["pairs"] = self.pairs_weight * squared_error(made, pairs.x0_BCHW).mean()
        return losses

    def matching(
        self, teacher: Teacher, score: nn.Module, images: Tensor, conditions: Conditions, draws: Draws
    ) -> Tensor:
        """The generator's loss at a random time."""
        process, t_B = teacher.process, matching_time(draws, self.level_power)
        with torch.no_grad():
            x_t = process.add_noise(images, draws.normal(teacher.spec.sample_shape, Purpose.MATCHING_NOISE), t_B)
            real = teacher.x0(x_t, t_B, conditions)
            gradient = fake_x0(teacher.spec, score, x_t, t_B, conditions) - real
            if self.weighting == "dmd":
                gradient = gradient / mean_distance(images, real)
            elif self.weighting == "vsd":
                gradient = gradient * process.at(t_B).like(x_t).sigma
        return follow(images, gradient)
