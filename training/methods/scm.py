"""Simplified continuous-time consistency: the student's x0 stands still along the trajectory.

Lu & Song 2024 (sCM, arXiv 2410.11081), algorithm 1. In TrigFlow's coordinates (angle = arctan(sigma / alpha), state
x / norm, which any process has) a consistency function is ``f = cos x - sin F``, and its tangent, times cos, is
``g = -cos^2 (F - dx/dt) - r cos sin (x + dF/dt)`` with r warmed up from 0 to 1, divided by ``|g| + c``; F regresses on
``F + g`` without gradient. dx/dt is the teacher's (sCD), or the data's ``cos eps - sin x0`` (sCT).

Written in x0: for r = 1, g is ``cos df/dt``; its first part is ``cos^2 / sin (f - x0_teacher)``; an error of F is one of f over
sin. So the student keeps its teacher's process and prediction. df/dt is taken over an interval or as a derivative (`tangents`).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from distill_rt.core.process import NoiseProcess
from distill_rt.core.spec import StudentSpec
from distill_rt.training.consistency import renoise_plans, require_boundary
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.losses import squared_error
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting, sequence
from distill_rt.training.predictor import Conditions, Predictor, Teacher
from distill_rt.training.student import distilled_contract
from distill_rt.training.tangents import (
    MIN_TIME,
    Source,
    check_interval,
    conditions_of,
    derivative,
    earlier,
    slope,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SimplifiedConsistency(OneStage):
    """Simplified continuous-time consistency (sCD; sCT with ``source=data``).

    Args:
        steps: largest plan; every power of two below it is offered too (re-noising between evaluations).
        source: of the trajectory; a student of the data learns no guidance.
        interval: longest interval of df/dt in process time; 0 takes the derivative.
        warmup: share of the training in which r rises from 0 to 1.
        floor: c of the normalisation.
        plan_power: of the times at which a plan of several evaluations adds fresh noise (`renoise_plans`).
    """

    name: ClassVar[str] = "scm"

    steps: int = 4
    source: Source = "teacher"
    interval: float = 0.05
    warmup: float = 0.1
    floor: float = 0.1
    plan_power: float = 2.0
    iterations: int = 3000

    def __post_init__(self) -> None:
        check_setting(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        check_setting(0.0 <= self.warmup <= 1.0, f"warmup must be 0 to 1, got {self.warmup:g}")
        check_setting(self.floor > 0.0, f"floor must be positive, got {self.floor:g}")
        check_interval(self.interval)

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        require_boundary(teacher)
        return sequence([(self.name, self.iterations, 0)])

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        return distilled_contract(
            teacher,
            method=self.name,
            plans=renoise_plans(teacher, self.steps, power=self.plan_power),
            default_steps=self.steps,
            settings=dataclasses.asdict(self),
            guided=self.source == "teacher",
        )

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, process = teacher.spec, teacher.process
        student = Predictor.of(spec, networks["student"])
        conditions = conditions_of(self.source, teacher, batch, draws)
        t_B = MIN_TIME + (1.0 - MIN_TIME) * draws.uniform(Purpose.TIME)
        x_t = process.add_noise(batch.x0_BCHW, draws.normal(spec.sample_shape), t_B)
        f = student.x0(x_t, t_B, conditions)
        data = batch.x0_BCHW if self.source == "data" else None
        risen = min(1.0, (step - phase.start) / (self.warmup * phase.iterations)) if self.warmup else 1.0
        with torch.no_grad():
            g = self.tangent(student, teacher, (f, x_t, t_B), conditions, data, risen)
            size = g.square().flatten(1).mean(dim=1).sqrt()[:, None, None, None]
            sin = angle_of(process, t_B).sin()[:, None, None, None]
            wanted = f - sin * g / (size + self.floor)
        return {"scm": (squared_error(f, wanted) / sin.flatten() ** 2).mean()}

    def tangent(
        self,
        student: Predictor,
        teacher: Teacher,
        point: tuple[Tensor, Tensor, Tensor],
        conditions: Conditions,
        data: Tensor | None,
        risen: float = 1.0,
    ) -> Tensor:
        """g before it is normalised, (B, C, H, W).

        Args:
            point: the student's x0 at (x_t, t), x_t and t.
            data: clean images of the trajectories; None for the teacher's.
            risen: r.
        """
        (f, x_t, t_B), process = point, teacher.process
        angle_B = angle_of(process, t_B)
        if self.interval:
            m_B = (t_B - self.interval).clamp(min=0.0)
            change = f - student.x0(earlier(teacher, x_t, t_B, m_B, conditions, data), m_B, conditions)
            length_B = angle_B - angle_of(process, m_B)
        else:
            x0 = teacher.x0(x_t, t_B, conditions) if data is None else data
            dx = slope(process, x_t, x0, t_B)
            change = derivative(lambda x, t: student.x0(x, t, conditions), x_t, t_B, dx)
            length_B = angle_speed(process, t_B)
        cos, sin, length = (v[:, None, None, None] for v in (angle_B.cos(), angle_B.sin(), length_B))
        g: Tensor = cos * change / length
        if risen < 1.0:
            x0 = teacher.x0(x_t, t_B, conditions) if data is None else data
            first = cos**2 / sin * (f - x0)
            g = first + risen * (g - first)
        return g


def angle_of(process: NoiseProcess, t_B: Tensor) -> Tensor:
    """TrigFlow's time for data of unit variance, arctan(sigma / alpha), (B,)."""
    return torch.atan2(process.sigma(t_B), process.alpha(t_B))


def angle_speed(process: NoiseProcess, t_B: Tensor) -> Tensor:
    """d angle / d t, (B,)."""
    level = process.at(t_B)
    speed: Tensor = (level.d_sigma * level.alpha - level.d_alpha * level.sigma) / (level.alpha**2 + level.sigma**2)
    return speed
