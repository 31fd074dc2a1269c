"""Catch-up distillation: the velocity learns from its own velocity a little later, so that it runs ahead of the curve.

Shao et al. 2023 (CUD, arXiv 2305.10769): beside the usual target the velocity at (x_t, t) regresses on that of a slow copy at
(x_{t-h}, t - h), where the student's own short step leads. With weights w and 1 the two agree at
``v_t = (w v_{t-h} + u_t) / (w + 1)``: an average of the ODE's velocities along the way ahead, w E[h] of time deep on average. A
step of length 1/N needs the average over 1/N, which is 1/(2N) deep; that is what w = 0 chooses. (In the authors' code the slow
copy is the live network; here it is slow. They train from nothing, so u is the data's; here it is the teacher's.)

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
        longest: the longest h, in that time.
        lengths: h ``uniform`` in (0, longest), or ``fixed`` at longest.
        weight: of the catch-up term, w; 0 looks half of a step ahead on average, the paper's is 1.
        target_decay: of the slow copy.
    """

    name: ClassVar[str] = "catch_up"

    steps: int = 4
    longest: float = 0.125
    lengths: Literal["uniform", "fixed"] = "uniform"
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
        mean_length = self.longest if self.lengths == "fixed" else 0.5 * self.longest
        weight = self.weight or 0.5 / self.steps / mean_length
        return weight / (weight + 1.0)

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, process = teacher.spec, teacher.process
        c = draw_conditions(spec, batch, draws)
        t_B = t_from_flow_time(process, draws.uniform(Purpose.TIME))
        tau_B = flow_time(process, t_B)
        length_B = self.longest * (draws.uniform(Purpose.SECOND_TIME) if self.lengths == "uniform" else 1.0)
        x_t = process.add_noise(batch.x0_BCHW, draws.normal(spec.sample_shape), t_B)
        x0 = Predictor.of(spec, networks["student"]).x0(x_t, t_B, c)
        wanted = teacher.x0(x_t, t_B, c)
        with torch.no_grad():
            # Below the shortest step there is nothing to catch up with: the teacher is the target of both terms.
            reaches_B = tau_B > length_B
            s_B = t_from_flow_time(process, torch.where(reaches_B, tau_B - length_B, tau_B))
            x_s = jump(process, x_t, x0, t_B, s_B)
            ahead = velocity(process, x_s, Predictor.of(spec, networks["target"]).x0(x_s, s_B, c), s_B)
            caught = velocity(process, x_t, wanted, t_B)
            target = torch.where(reaches_B[:, None, None, None], ahead, caught)
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
