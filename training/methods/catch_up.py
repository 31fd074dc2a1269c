"""Catch-up distillation: the velocity learns from its own velocity a little later, so that it runs ahead of the curve.

Shao et al. 2023 (CUD, arXiv 2305.10769): beside the usual target the velocity at (x_t, t) regresses on that of a slow copy at
(x_{t-h}, t - h), a short step ahead. With weights w and 1 the two agree at ``v_t = (w v_{t-h} + u_t) / (w + 1)``: an average of
the ODE's velocities along the way ahead. A step needs the plain average over its length. For h of one law that is an
exponential one, w E[h] deep; for h = c d, where d is what is left of the step, it is the plain one, if w = 1/c - 1: then
``d v_t = (d - h) v_{t-h} + h u_t``, the time that is left in two parts. The authors' third choice of h is that, with c = 1/16,
d = t and another w.

The short step is the teacher's, as only then the velocities are those of one path. (The authors take the student's own; they
train from nothing, so u is the data's. In their code the slow copy is the live network; here it is slow.)

Velocities and h are those of the rectified flow's coordinates (`flow_map`), whatever the teacher's process.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import StudentSpec
from distill_rt.training.copies import average_into, frozen_copy, warmed_decay
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.flow_map import flow_time, jump, t_from_flow_time, velocity, velocity_weight
from distill_rt.training.losses import squared_error
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting
from distill_rt.training.predictor import Predictor, Teacher
from distill_rt.training.student import distilled_contract, draw_conditions, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class CatchUp(OneStage):
    """Catch-up distillation.

    Args:
        steps: the only plan, uniform in the rectified flow's time.
        longest: the longest h, in that time; c where h is ``proportional``.
        lengths: h ``proportional`` to what is left of the step, ``uniform`` in (0, longest), or ``fixed`` at longest.
        path: whose velocity takes the short step.
        weight: of the catch-up term, w; 0 chooses what averages over one step: 1/c - 1, or half of a step over the mean h. The
            paper's is 1.
        target_decay: of the slow copy.
    """

    name: ClassVar[str] = "catch_up"

    steps: int = 4
    longest: float = 0.0625
    lengths: Literal["proportional", "uniform", "fixed"] = "proportional"
    path: Literal["teacher", "student"] = "teacher"
    weight: float = 0.0
    target_decay: float = 0.5
    iterations: int = 2500

    def __post_init__(self) -> None:
        check_setting(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        check_setting(0.0 < self.longest < 1.0, f"longest must be between 0 and 1, got {self.longest:g}")
        check_setting(self.weight >= 0.0, f"weight must not be negative, got {self.weight:g}")
        check_setting(0.0 <= self.target_decay < 1.0, f"target_decay must be in [0, 1), got {self.target_decay:g}")

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        times = [t_from_flow_time(teacher.process, 1.0 - i / self.steps) for i in range(self.steps)]
        plans = {self.steps: ddim(teacher.process, teacher.parameterization, times)}
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        student = student_network(teacher, self.contract(teacher.spec))
        return {"student": student, "target": frozen_copy(student)}

    def share(self) -> float:
        """w / (w + 1)."""
        one_step = {
            "proportional": 1.0 / self.longest - 1.0,
            "uniform": 1.0 / self.steps / self.longest,
            "fixed": 0.5 / self.steps / self.longest,
        }
        weight = self.weight or one_step[self.lengths]
        return weight / (weight + 1.0)

    def ahead(self, tau_B: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """The flow time a short step ahead, and whether there is a velocity to catch up with: not at the end, (B,)."""
        if self.lengths != "proportional":
            length_B = self.longest * (draws.uniform(Purpose.SECOND_TIME) if self.lengths == "uniform" else 1.0)
            reaches_B = tau_B > length_B
            return torch.where(reaches_B, tau_B - length_B, tau_B), reaches_B
        # A time of the plan begins the step below it. The network is continuous in time, so the step above ends a little later.
        margin = self.longest / self.steps
        end_B = torch.floor((tau_B - margin).clamp(min=0.0) * self.steps) / self.steps
        ahead_B = tau_B - self.longest * (tau_B - end_B)
        return ahead_B, (end_B == 0.0) | (ahead_B > end_B + margin)

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, process = teacher.spec, teacher.process
        c = draw_conditions(spec, batch, draws)
        t_B = t_from_flow_time(process, draws.uniform(Purpose.TIME))
        ahead_B, reaches_B = self.ahead(flow_time(process, t_B), draws)
        s_B = t_from_flow_time(process, ahead_B)
        x_t = process.add_noise(batch.x0_BCHW, draws.normal(spec.sample_shape), t_B)
        x0 = Predictor.of(spec, networks["student"]).x0(x_t, t_B, c)
        wanted = teacher.x0(x_t, t_B, c)
        with torch.no_grad():
            x_s = jump(process, x_t, wanted if self.path == "teacher" else x0, t_B, s_B)
            later = velocity(process, x_s, Predictor.of(spec, networks["target"]).x0(x_s, s_B, c), s_B)
            # Where there is nothing to catch up with the teacher is the target of both terms.
            target = torch.where(reaches_B[:, None, None, None], later, velocity(process, x_t, wanted, t_B))
            # The x0 whose velocity at (x_t, t) is that of the target.
            level = process.at(t_B).like(x_t)
            x0_ahead = (x_t - level.sigma * target) / (level.alpha + level.sigma)
        weight_B, share = velocity_weight(process, t_B), self.share()
        return {
            "catch_up": share * (weight_B * squared_error(x0, x0_ahead)).mean(),
            "teacher": (1.0 - share) * (weight_B * squared_error(x0, wanted)).mean(),
        }

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        average_into(networks["target"], networks["student"], warmed_decay(self.target_decay, step))
