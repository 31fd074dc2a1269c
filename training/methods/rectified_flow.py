"""Rectified flow: straighten the path from noise to image, so that few steps of the same sampler suffice.

Liu et al. 2022 (arXiv 2209.03003), algorithm 1, "reflow": pairs (z, x0) of a model's own ODE, and a new model that regresses on
the straight line between them; `times` repeats it with the new model as the teacher. With `distill_iterations` the result is
then distilled to its plan's times (their section 3.3; InstaFlow, arXiv 2309.06380, for one step).

The straight line of the rectified flow is ``alpha_t x0 + sigma_t z`` in any process, and a step of Euler's method on it is a
DDIM step, so the student keeps its teacher's process and prediction. The loss is the squared error of the velocity ``z - x0``
for t uniform in the rectified flow's own time ``sigma / (alpha + sigma)``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.spec import StudentSpec
from distill_rt.training.copies import assign, frozen_copy
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.flow_map import t_from_flow_time, velocity_weight
from distill_rt.training.losses import squared_error
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting, check_trained, sequence
from distill_rt.training.pairs import PairCache
from distill_rt.training.plans import powers_of_two
from distill_rt.training.predictor import Predictor, Teacher
from distill_rt.training.student import distilled_contract, embed_guidance, student_network

DISTILL = 1
"""Target of the last phase; the reflow phases have 0."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RectifiedFlow(OneStage):
    """Reflow, and distillation of the straightened flow.

    Args:
        steps: largest plan; without distillation every power of two below it is offered too.
        times: how often the flow is straightened.
        ode_steps: of DPM-Solver++(2M) for the pairs.
        num_pairs: how many are made, by every model that gives pairs.
        iterations: training steps of every straightening.
        distill_iterations: training steps of the distillation; 0 leaves it out.
    """

    name: ClassVar[str] = "rectified_flow"

    steps: int = 4
    times: int = 1
    ode_steps: int = 32
    num_pairs: int = 16384
    iterations: int = 3000
    distill_iterations: int = 0

    def __post_init__(self) -> None:
        check_setting(
            min(self.steps, self.times, self.ode_steps, self.num_pairs) >= 1,
            "steps, times, ode_steps and num_pairs must be at least 1",
        )

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        check_trained(iterations=self.iterations)
        check_setting(
            self.distill_iterations >= 0, f"distill_iterations must not be negative, got {self.distill_iterations}"
        )
        reflow = [(f"reflow {k + 1}", self.iterations, 0) for k in range(self.times)]
        return sequence([*reflow, ("distillation", self.distill_iterations, DISTILL)])

    def _times(self, teacher: StudentSpec, num_steps: int) -> list[float]:
        """Uniform in the rectified flow's time."""
        return [float(t_from_flow_time(teacher.process, 1.0 - i / num_steps)) for i in range(num_steps)]

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        counts = [self.steps] if self.distill_iterations else powers_of_two(self.steps)
        plans = {n: ddim(teacher.process, teacher.parameterization, self._times(teacher, n)) for n in counts}
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        student = student_network(teacher, self.contract(teacher.spec))
        return {
            "student": student,
            "straightened": frozen_copy(student),
            "pairs": PairCache(embed_guidance(teacher.spec), self.num_pairs, self.batch_size),
        }

    def begin(self, phase: Phase, networks: Networks) -> None:
        assign(networks["straightened"], networks["student"])
        cache = networks["pairs"]
        assert isinstance(cache, PairCache)
        cache.clear()

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        cache, process = networks["pairs"], teacher.process
        assert isinstance(cache, PairCache)
        # The first pairs are the teacher's own, with its two evaluations where it is guided; later ones of the last model.
        first = phase.start == 0
        source = teacher if first else Teacher(embed_guidance(teacher.spec), networks["straightened"])
        table = dpmpp_2m(process, teacher.spec.parameterization, self._times(teacher.spec, self.ode_steps))
        pairs = cache.next(source, table, batch, draws)
        if phase.target == DISTILL:
            i_B = draws.integers(1, self.steps + 1, Purpose.TIME)
            tau_B = i_B / self.steps
        else:
            tau_B = draws.uniform(Purpose.TIME)
        t_B = t_from_flow_time(process, tau_B)
        x_t = process.add_noise(pairs.x0_BCHW, pairs.z_BCHW, t_B)
        x0 = Predictor.of(teacher.spec, networks["student"]).x0(x_t, t_B, pairs.conditions)
        return {"reflow": (velocity_weight(process, t_B) * squared_error(x0, pairs.x0_BCHW)).mean()}
