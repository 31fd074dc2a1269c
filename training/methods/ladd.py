"""Latent adversarial diffusion distillation: the teacher's own features tell the student's images from the teacher's.

Sauer et al. 2024 (LADD, arXiv 2403.12015): real images are the teacher's, made beforehand; the student denoises them
from the levels of its sampler to x0; real and student's images are noised to a random level, the frozen teacher reads both, and
light heads on its features are the discriminator. There is no regression on the teacher.

The heads are told the step that made an image (as `dmd2` tells its score network): a discriminator of the mixture of all steps
lets one step lack what another has too much of.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.spec import StudentSpec
from distill_rt.training.adversarial import (
    AdversarialLoss,
    FeatureJudge,
    GeneratorAndDiscriminator,
    discriminator_loss,
    generator_loss,
    logit_normal_time,
    steepness,
    teacher_features,
)
from distill_rt.training.consistency import renoise_plans
from distill_rt.training.data import Batch
from distill_rt.training.distribution import frozen
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting, check_start
from distill_rt.training.pairs import PairCache
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Conditions, Predictor, Teacher
from distill_rt.training.rollout import renoised_states
from distill_rt.training.student import distilled_contract, student_network

NEARBY = 0.05
"""Distance at which the discriminator's slope is measured, in units of the noise: what is to be told apart is no finer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SideBySide:
    """Real images and the student's of equal conditions, both (B, C, H, W), and the time of the step that made each, (B,)."""

    real: Tensor
    made: Tensor
    made_at_B: Tensor
    conditions: Conditions


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentAdversarial(OneStage):
    """Latent adversarial diffusion distillation (LADD).

    Args:
        steps: largest plan; every power of two below it is offered too (re-noising between evaluations).
        start: process time of the first evaluation, as for `dmd`.
        inputs: what the student denoises after its first evaluation: its ``own`` images, re-noised as its sampler does it
            (`dmd2`), or ``real`` ones, as the paper has it, which leave each evaluation the errors of those before it.
        loss: of the logits.
        first_share: of the batch that starts at pure noise, beside its share of all levels.
        judge_steps: updates of the discriminator for every update of the student.
        judge_rate: learning rate of the discriminator over the student's (Heusel et al. 2017, arXiv 1706.08500). Optimisers
            that divide gradients by their size move a student at full rate after a discriminator that knows nothing yet.
        judge_warmup: steps in which the discriminator learns alone.
        smoothness: weight of the penalty on steep discriminators; 0 has none.
        level_mean, level_std: of the logit-normal law of the level at which the features are read.
        num_pairs, teacher_steps: how many real images, and steps of DPM-Solver++(2M) that make them.
    """

    name: ClassVar[str] = "ladd"
    follows_trajectory: ClassVar[bool] = False

    steps: int = 4
    start: float = 0.75
    inputs: Literal["real", "own"] = "own"
    loss: AdversarialLoss = "softplus"
    first_share: float = 0.5
    judge_steps: int = 4
    judge_rate: float = 10.0
    judge_warmup: int = 100
    smoothness: float = 0.01
    level_mean: float = -0.5
    level_std: float = 1.5
    num_pairs: int = 8192
    teacher_steps: int = 32
    iterations: int = 3000
    peak_learning_rate: float = 3e-4
    ema_decay: float = 0.998

    def __post_init__(self) -> None:
        check_setting(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        check_start(self.start)
        check_setting(0.0 <= self.first_share <= 1.0, f"first_share must be in [0, 1], got {self.first_share:g}")
        check_setting(self.judge_steps >= 1, f"judge_steps must be at least 1, got {self.judge_steps}")
        check_setting(self.judge_rate > 0.0, f"judge_rate must be positive, got {self.judge_rate:g}")
        check_setting(self.judge_warmup >= 0, f"judge_warmup must not be negative, got {self.judge_warmup}")
        check_setting(self.smoothness >= 0.0, f"smoothness must not be negative, got {self.smoothness:g}")
        check_setting(self.level_std > 0.0, f"level_std must be positive, got {self.level_std:g}")
        check_setting(
            self.teacher_steps >= 1 and self.num_pairs >= 1,
            f"teacher_steps and num_pairs must be at least 1, got {self.teacher_steps} and {self.num_pairs}",
        )

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        if self.iterations < 1:
            return ()
        rates = (("discriminator", self.judge_rate),)
        return (Phase(name=self.name, network="both", start=0, iterations=self.iterations, rates=rates),)

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        # Its levels are those of the largest plan, so only plans whose times are among them are trained.
        plans = {
            n: table for n, table in renoise_plans(teacher, self.steps, start=self.start).items() if self.steps % n == 0
        }
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        student = student_network(teacher, self.contract(teacher.spec))
        pairs = PairCache(teacher.spec, self.num_pairs, self.batch_size)
        both = GeneratorAndDiscriminator(student, FeatureJudge(teacher, tells_steps=self.steps > 1))
        return {"student": student, "both": both, "pairs": pairs}

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, both, cache = teacher.spec, networks["both"], networks["pairs"]
        assert isinstance(both, GeneratorAndDiscriminator)
        assert isinstance(cache, PairCache)
        table = dpmpp_2m(spec.process, spec.parameterization, uniform_times(self.teacher_steps))
        pairs = cache.next(teacher, table, batch, draws)
        row_B = draws.integers(0, self.steps, Purpose.STEP)
        row_B = torch.where(draws.uniform(Purpose.SECOND_TIME) < self.first_share, 0, row_B)
        times = uniform_times(self.steps, start=self.start)
        t_B = torch.tensor(times, device=draws.device)[row_B]
        student = Predictor.of(spec, both.student)
        if self.inputs == "own":
            x_t = renoised_states(student, spec.sample_shape, times, row_B, pairs.conditions, draws)
        else:
            z = draws.normal(spec.sample_shape)
            x_t = spec.process.add_noise(pairs.x0_BCHW, z, t_B)
            # Generation starts without an image, and what is left of one below time 1 is plain to see.
            x_t = torch.where((row_B == 0)[:, None, None, None], spec.process.init_scale(self.start) * z, x_t)
        with torch.set_grad_enabled(step >= self.judge_warmup and step % self.judge_steps == 0):
            made = student.x0(x_t, t_B, pairs.conditions)
        images = SideBySide(real=pairs.x0_BCHW, made=made, made_at_B=t_B, conditions=pairs.conditions)
        return self.adversarial(teacher, both.discriminator, images, draws)

    def adversarial(self, teacher: Teacher, judge: nn.Module, images: SideBySide, draws: Draws) -> dict[str, Tensor]:
        """The losses at one random level, the student's where its images take gradients; real and made share the noise."""
        spec, made_at_B, conditions = teacher.spec, images.made_at_B, images.conditions
        assert isinstance(judge, FeatureJudge)
        r_B = logit_normal_time(self.level_mean, self.level_std, draws, Purpose.TIME)
        noise = draws.normal(spec.sample_shape, Purpose.MATCHING_NOISE)
        real_r, made_r = (spec.process.add_noise(x0, noise, r_B) for x0 in (images.real, images.made))
        of_made = teacher_features(teacher, judge.taps, made_r, r_B, conditions)
        with torch.no_grad():
            of_real = teacher_features(teacher, judge.taps, real_r, r_B, conditions)
        on_real = judge(of_real, r_B, made_at_B, conditions)
        on_made = judge([value.detach() for value in of_made], r_B, made_at_B, conditions)
        losses = {"discriminator": discriminator_loss(self.loss, on_real, on_made)}
        if self.smoothness:
            away = draws.normal(spec.sample_shape, Purpose.NEARBY)
            step = NEARBY * spec.process.at(r_B).like(away).sigma * away
            for name, x_r, logits in (("real", real_r, on_real), ("made", made_r, on_made)):
                with torch.no_grad():
                    nearby = teacher_features(teacher, judge.taps, x_r + step, r_B, conditions)
                slope = steepness(logits, judge(nearby, r_B, made_at_B, conditions), NEARBY)
                losses[f"steepness_{name}"] = self.smoothness * slope
        if images.made.requires_grad:
            with frozen(judge):
                losses["generator"] = generator_loss(self.loss, on_real, judge(of_made, r_B, made_at_B, conditions))
        return losses
