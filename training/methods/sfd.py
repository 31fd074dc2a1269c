"""Simple and fast distillation: the student's few steps follow the teacher's many, from the student's own states.

Zhou et al. 2024 (SFD, arXiv 2409.19681), algorithm 1: from the student's state x_n the teacher takes several steps to the next
time, the student one; the loss is the distance of where they land, and the next state is the student's. Nothing but noise
is needed, and training sees exactly the states that generation visits.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import StudentSpec
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws
from distill_rt.training.flow_map import jump
from distill_rt.training.losses import pseudo_huber
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Predictor, Teacher
from distill_rt.training.student import distilled_contract, draw_conditions


@dataclass(frozen=True, kw_only=True, slots=True)
class SimpleFastDistillation(OneStage):
    """Args: steps: of the student; teacher_steps: of second order for one of them; huber: c of the metric (small is L1)."""

    name: ClassVar[str] = "sfd"

    steps: int = 4
    teacher_steps: int = 4
    huber: float = 0.01
    iterations: int = 600

    def __post_init__(self) -> None:
        check_setting(
            self.steps >= 1 and self.teacher_steps >= 2,
            f"sfd needs steps >= 1 and teacher_steps >= 2, got {self.steps} and {self.teacher_steps}",
        )
        check_setting(self.huber > 0.0, f"huber must be positive, got {self.huber:g}")

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        plans = {self.steps: ddim(teacher.process, teacher.parameterization, uniform_times(self.steps))}
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        process = teacher.process
        conditions = draw_conditions(teacher.spec, batch, draws)
        student = Predictor.of(teacher.spec, networks["student"])
        x = process.init_scale() * draws.normal(teacher.spec.sample_shape)
        total = x.new_zeros(len(x))
        for t, s in itertools.pairwise([*uniform_times(self.steps), 0.0]):
            wanted = x
            fine = [t + (s - t) * k / self.teacher_steps for k in range(self.teacher_steps + 1)]
            for a, b in itertools.pairwise(fine):
                a_B, b_B = x.new_full((len(x),), a), x.new_full((len(x),), b)
                wanted = teacher.step(wanted, a_B, b_B, conditions, order=2)
            t_B, s_B = x.new_full((len(x),), t), x.new_full((len(x),), s)
            reached = jump(process, x, student.x0(x, t_B, conditions), t_B, s_B)
            total = total + pseudo_huber(reached, wanted, self.huber)
            x = reached.detach()
        return {"sfd": total.mean() / self.steps}
