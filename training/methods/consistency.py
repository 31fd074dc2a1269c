"""Consistency distillation: every point of the teacher's trajectory maps to the same clean image.

Song et al. 2023 (arXiv 2303.01469), algorithm 2: x_t is noised data, x_s the point one teacher step further down, and the
student's x0 at (x_t, t) regresses on a slow copy's x0 at (x_s, s). Guidance of a two-evaluation teacher happens inside the
solver, with the scale as an input (Luo et al. 2023, arXiv 2310.04378, section 4.2).

Two laws for the pair (t, s):

* ``fixed``: t on a uniform grid of `num_levels` levels, s the next one down; the target network is an average (decay 0.95).
* ``ect``: the noise ratio sigma / alpha is log-normal, the next one is
  ``ratio * max(0, 1 - 2^-(k+1) (1 + 8 sigmoid(-ratio)))`` with k growing over training, weight ``1 / (ratio - next)``,
  pseudo-Huber metric, the target is the student itself (Geng et al. 2024, arXiv 2406.14548, sections 3.2, 3.3, whose sigma is
  our ratio; the step is the teacher's where they use the data).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import Prediction
from distill_rt.core.process import NoiseProcess
from distill_rt.core.samplers.consistency import multistep_consistency
from distill_rt.core.spec import StudentSpec
from distill_rt.training.copies import average_into, frozen_copy, warmed_decay
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.losses import pseudo_huber, squared_error
from distill_rt.training.methods.base import Networks, Phase, sequence
from distill_rt.training.predictor import Predictor, Teacher
from distill_rt.training.student import distilled_contract, draw_conditions, student_network

RATIO_LOG_MEAN, RATIO_LOG_STD, MAX_RATIO = 0.0, 2.0, 80.0
"""Law of the noise ratio of ``ect`` and the level that its students start from. Their mean of -1.1 belongs to data of standard
deviation 0.5 and to 400,000 iterations; at our 1,200 it leaves the first step untrained (docs/log.md)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Consistency:
    """Consistency distillation.

    Args:
        steps: largest plan; every power of two below it is offered too (re-noising between evaluations).
        pairs: ``fixed`` or ``ect``.
        num_levels: grid of ``fixed``.
        first_exponent, last_exponent: k of ``ect`` at the start and at the end.
        target_decay: of the average that gives the targets of ``fixed``.
        solver_order: of the teacher step: 1 is DDIM, 2 evaluates twice.
        huber: c of the pseudo-Huber metric of ``ect``.
    """

    name: ClassVar[str] = "consistency"

    steps: int = 4
    pairs: Literal["fixed", "ect"] = "fixed"
    num_levels: int = 24
    first_exponent: int = 1
    last_exponent: int = 5
    target_decay: float = 0.95
    solver_order: int = 2
    huber: float = 0.001
    iterations: int = 1200
    batch_size: int = 128
    peak_learning_rate: float = 1e-3
    ema_decay: float = 0.99

    def __post_init__(self) -> None:
        if self.steps < 1 or self.num_levels < 2:
            raise UsageError(
                f"consistency needs steps >= 1 and num_levels >= 2, got {self.steps} and {self.num_levels}",
                code="setting-invalid",
            )
        if self.solver_order not in (1, 2):
            raise UsageError(f"solver_order must be 1 or 2, got {self.solver_order}", code="setting-invalid")

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        if teacher.parameterization.prediction is Prediction.X0 and teacher.parameterization.preconditioning.kind in (
            "none",
        ):
            raise UsageError(
                "a consistency student must return its input at t = 0; plain x0 prediction does not",
                code="no-consistency-boundary",
                hint="use a teacher with v, flow or eps prediction, or with EDM preconditioning",
            )
        return sequence([("consistency", self.iterations, 0)])

    def learning_rate(self, phase: Phase, step: int) -> float:
        return self.peak_learning_rate * (1.0 - step / phase.iterations)

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        counts = sorted({self.steps} | {2**k for k in range(self.steps.bit_length()) if 2**k <= self.steps})
        start = 1.0 if self.pairs == "fixed" else float(teacher.process.t_from_sigma_ratio(MAX_RATIO))
        plans = {
            n: multistep_consistency(
                teacher.process, teacher.parameterization, [start * (1.0 - i / n) for i in range(n)]
            )
            for n in counts
        }
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        student = student_network(teacher, self.contract(teacher.spec))
        return {"student": student, "target": frozen_copy(student)}

    def begin(self, phase: Phase, networks: Networks) -> None:
        pass

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        process = teacher.process
        conditions = draw_conditions(teacher.spec, batch, draws)
        t_B, s_B, weight_B = self._pair(phase, step, draws, process)
        x_t = process.add_noise(batch.x0_BCHW, draws.normal(teacher.spec.sample_shape), t_B)
        x_s = teacher.step(x_t, t_B, s_B, conditions, order=self.solver_order)
        source = networks["target"] if self.pairs == "fixed" else networks["student"]
        with torch.no_grad():
            target = Predictor.of(teacher.spec, source).x0(x_s, s_B, conditions)
        x0 = Predictor.of(teacher.spec, networks["student"]).x0(x_t, t_B, conditions)
        distance_B = squared_error(x0, target) if self.pairs == "fixed" else pseudo_huber(x0, target, self.huber)
        return {"consistency": (weight_B * distance_B).mean()}

    def _pair(self, phase: Phase, step: int, draws: Draws, process: NoiseProcess) -> tuple[Tensor, Tensor, Tensor]:
        """(t, s, weight), each (B,)."""
        if self.pairs == "fixed":
            i_B = draws.integers(1, self.num_levels + 1, Purpose.TIME)
            return i_B / self.num_levels, (i_B - 1) / self.num_levels, torch.ones(len(i_B))
        progress = (step - phase.start) / phase.iterations
        k = self.first_exponent + int(progress * (self.last_exponent - self.first_exponent + 1))
        log_ratio = RATIO_LOG_MEAN + RATIO_LOG_STD * draws.normal((), Purpose.TIME)
        ratio_B = log_ratio.exp().clamp(max=MAX_RATIO)
        next_B = ratio_B * (1.0 - 2.0 ** -(k + 1) * (1.0 + 8.0 * torch.sigmoid(-ratio_B))).clamp(min=0.0)
        t_B, s_B = (process.t_from_sigma_ratio(r).clamp(min=0.0) for r in (ratio_B, next_B))
        return t_B, s_B, 1.0 / (ratio_B - next_B)

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        if self.pairs == "fixed":
            average_into(networks["target"], networks["student"], warmed_decay(self.target_decay, step))
