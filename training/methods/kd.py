"""Knowledge distillation of the whole sampler: one evaluation learns the image that the teacher makes of the same noise.

Luhman & Luhman 2021 (arXiv 2101.02388), equation 8, with squared error. The pairs are made in the first steps of training and
drawn again afterwards (`PairCache`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from distill_rt.core.samplers.consistency import one_step
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.spec import StudentSpec
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws
from distill_rt.training.losses import squared_error
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting
from distill_rt.training.pairs import PairCache
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Predictor, Teacher
from distill_rt.training.student import distilled_contract, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class KnowledgeDistillation(OneStage):
    """Args: steps: 1; teacher_steps: of DPM-Solver++(2M) for the pairs; num_pairs: how many are made."""

    name: ClassVar[str] = "kd"

    steps: int = 1
    teacher_steps: int = 32
    num_pairs: int = 16384
    iterations: int = 3000

    def __post_init__(self) -> None:
        check_setting(self.steps == 1, f"kd makes students of one step, got steps={self.steps}")
        check_setting(
            self.teacher_steps >= 1 and self.num_pairs >= 1,
            f"teacher_steps and num_pairs must be at least 1, got {self.teacher_steps} and {self.num_pairs}",
        )

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        plans = {1: one_step(teacher.process, teacher.parameterization)}
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=1, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        student = student_network(teacher, self.contract(teacher.spec))
        return {"student": student, "pairs": PairCache(teacher.spec, self.num_pairs, self.batch_size)}

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, cache = teacher.spec, networks["pairs"]
        assert isinstance(cache, PairCache)
        table = dpmpp_2m(spec.process, spec.parameterization, uniform_times(self.teacher_steps))
        pairs = cache.next(teacher, table, batch, draws)
        t_B = pairs.z_BCHW.new_ones(len(pairs.z_BCHW))
        x0 = Predictor.of(spec, networks["student"]).x0(spec.process.init_scale() * pairs.z_BCHW, t_B, pairs.conditions)
        return {"kd": squared_error(x0, pairs.x0_BCHW).mean()}
