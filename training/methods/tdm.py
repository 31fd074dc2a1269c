"""Trajectory distribution matching: each state of the student's deterministic path has the law of the teacher's at its time.

Luo et al. 2025 (TDM, arXiv 2503.06674), data-free: the student's DDIM jump from t to s lands on x_s, more noise of the
process takes x_s up to a level r, and there the scores of teacher and student are compared as in `dmd`. The student is
trained at the states that its own sampler visits; one jump takes the gradient.

Every jump has a distribution of its own. Two laws keep them apart in the score network:

* ``interval``: r between s and t only, so that the level names the jump.
* ``above``: r anywhere above s; the score network is told s by the second-time input of our networks.

The score is learned from the transition itself: with x_r = k x_s + a z, the x0 whose score is that of q(x_r | x_s) is
``(x_s - k sigma_s^2 z / a) / alpha_s`` (Vincent 2011, denoising score matching), which for s = 0 is the image.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import StudentSpec
from distill_rt.training.data import Batch
from distill_rt.training.distribution import MAX_TIME, MIN_TIME, GeneratorAndScore, follow, mean_distance
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.flow_map import jump, two_time_x0
from distill_rt.training.losses import squared_error
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting, check_start
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Conditions, Predictor, Teacher
from distill_rt.training.rollout import ddim_states
from distill_rt.training.student import distilled_contract, draw_conditions, embed_second_time, student_network
from distill_rt.training.transitions import transition


@dataclass(frozen=True, kw_only=True, slots=True)
class Landing:
    """Where the student's jump from t ended: x_s with its s, the x0 it jumped with, and the highest level to compare at."""

    x_s: Tensor
    x0: Tensor
    s_B: Tensor
    highest_B: Tensor

    def level(self, uniform_B: Tensor) -> Tensor:
        """r above s, more often near it, where the scores know the fine structure of x_s."""
        return self.s_B + (self.highest_B - self.s_B) * (MIN_TIME + (MAX_TIME - MIN_TIME) * uniform_B**2)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryDistributionMatching(OneStage):
    """Trajectory distribution matching.

    Args:
        steps: of the student.
        start: process time of the first evaluation, as for `dmd`.
        levels: where the scores are compared.
        score_steps: updates of the score network for every update of the student.
        weighting: ``dmd`` divides the gradient by mean |x0 - x0_teacher| of each image, ``vsd`` multiplies it by sigma_r.
    """

    name: ClassVar[str] = "tdm"
    follows_trajectory: ClassVar[bool] = False

    steps: int = 4
    start: float = 0.75
    levels: Literal["interval", "above"] = "above"
    score_steps: int = 4
    weighting: Literal["dmd", "vsd"] = "dmd"
    iterations: int = 4000
    peak_learning_rate: float = 5e-4

    def __post_init__(self) -> None:
        check_setting(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        check_start(self.start)
        check_setting(self.score_steps >= 1, f"score_steps must be at least 1, got {self.score_steps}")

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        if self.iterations < 1:
            return ()
        return (Phase(name=self.name, network="both", start=0, iterations=self.iterations),)

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        plans = {
            self.steps: ddim(teacher.process, teacher.parameterization, uniform_times(self.steps, start=self.start))
        }
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        spec = self.contract(teacher.spec)
        both = GeneratorAndScore(student_network(teacher, spec), student_network(teacher, embed_second_time(spec)))
        return {"student": both.student, "both": both}

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        both = networks["both"]
        assert isinstance(both, GeneratorAndScore)
        conditions = draw_conditions(teacher.spec, batch, draws)
        moves = step % self.score_steps == 0
        with torch.set_grad_enabled(moves):
            landing = self.land(teacher.spec, both.student, conditions, draws)
        losses = {"score": self.score_loss(teacher.spec, both.score, landing, conditions, draws)}
        if moves:
            losses["matching"] = self.matching(teacher, both.score, landing, conditions, draws)
        return losses

    def land(self, spec: StudentSpec, student: nn.Module, conditions: Conditions, draws: Draws) -> Landing:
        """One jump of every image's path, all jumps equally often."""
        predictor = Predictor.of(spec, student)
        times = torch.tensor([*uniform_times(self.steps, start=self.start), 0.0], device=draws.device)
        states = ddim_states(predictor, spec.sample_shape, times[:-1].tolist(), conditions, draws)
        row_B = draws.integers(0, self.steps, Purpose.STEP)
        x_t, t_B, s_B = states[row_B, torch.arange(len(row_B), device=row_B.device)], times[row_B], times[row_B + 1]
        x0 = predictor.x0(x_t, t_B, conditions)
        highest_B = t_B if self.levels == "interval" else torch.ones_like(t_B)
        return Landing(x_s=jump(spec.process, x_t, x0, t_B, s_B), x0=x0, s_B=s_B, highest_B=highest_B)

    def score_loss(
        self, spec: StudentSpec, score: nn.Module, landing: Landing, conditions: Conditions, draws: Draws
    ) -> Tensor:
        """Error of the raw output, weighted as a prediction of z is: a / sigma_r is all that tells z there."""
        x_s, r_B = landing.x_s.detach(), landing.level(draws.uniform(Purpose.SCORE_TIME))
        z = draws.normal(spec.sample_shape, Purpose.SCORE_NOISE)
        way = transition(spec.process, landing.s_B, r_B, x_s)
        x_r = way.up(x_s, z)
        wanted = (x_s - way.k * way.sigma_s**2 / way.a * z) / way.alpha_s
        q = spec.parameterization.coefficients(spec.process.at(r_B).like(x_r))[1]
        weight = way.a / way.sigma_t / q
        x0 = two_time_x0(spec, score, x_r, r_B, landing.s_B, conditions)
        return squared_error(weight * x0, weight * wanted).mean()

    def matching(
        self, teacher: Teacher, score: nn.Module, landing: Landing, conditions: Conditions, draws: Draws
    ) -> Tensor:
        """The student's loss at a random level above its landing."""
        spec, r_B = teacher.spec, landing.level(draws.uniform(Purpose.TIME))
        with torch.no_grad():
            way = transition(spec.process, landing.s_B, r_B, landing.x_s)
            x_r = way.up(landing.x_s, draws.normal(spec.sample_shape, Purpose.MATCHING_NOISE))
            real = teacher.x0(x_r, r_B, conditions)
            gradient = two_time_x0(spec, score, x_r, r_B, landing.s_B, conditions) - real
            weight = 1.0 / mean_distance(landing.x0, real) if self.weighting == "dmd" else way.sigma_t
        return follow(landing.x0, weight * gradient)
