"""BOOT: a student that sees only noise learns the denoised image of every time, each from the time above it.

Gu et al. 2023 (arXiv 2306.05544), equations 9 to 11, data-free: y(z, t) stands for ``(x_t - sigma_t z) / alpha_t`` of the
teacher's trajectory from z. On that trajectory a DDIM step from t to s is ``y_s = x0 + rho (y_t - x0)`` with
``rho = (sigma_s / alpha_s) / (sigma_t / alpha_t)`` and x0 the teacher's at ``x_t = alpha_t y_t + sigma_t z``, so y at s
regresses on y at t, and y(z, 1) on the teacher. Input and output are scaled as at t = 1 for every t: the input is always noise.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill_rt.core.process import NoiseProcess
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import Row, StepTable
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.losses import squared_error
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.student import distilled_contract, draw_conditions

LAST_TIME = 0.02
"""Where y is read: at smaller t the signal is the image itself, and nothing is left to learn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Boot(OneStage):
    """Args: steps: 1; step_size: t - s; boundary_weight: of y(z, 1)."""

    name: ClassVar[str] = "boot"

    steps: int = 1
    step_size: float = 0.04
    boundary_weight: float = 1.0
    iterations: int = 3000

    def __post_init__(self) -> None:
        check_setting(self.steps == 1, f"boot makes students of one step, got steps={self.steps}")
        check_setting(0.0 < self.step_size <= 0.5, f"step_size must be in (0, 0.5], got {self.step_size:g}")
        check_setting(self.boundary_weight > 0, f"boundary_weight must be positive, got {self.boundary_weight:g}")

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        process = teacher.process
        p, q, c_in = (float(v) for v in teacher.parameterization.coefficients(process.at(1.0)))
        row = Row(time=float(process.model_time(LAST_TIME)), c_in=c_in, p=p, q=q)
        plans = {1: StepTable(init_scale=process.init_scale(), rows=(row,))}
        return distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=1, settings=dataclasses.asdict(self)
        )

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, process, student = teacher.spec, teacher.process, networks["student"]
        c = draw_conditions(spec, batch, draws)
        z = draws.normal(spec.sample_shape)
        t_B = LAST_TIME + (1.0 - LAST_TIME) * draws.uniform(Purpose.TIME)
        s_B = (t_B - self.step_size).clamp(min=LAST_TIME)
        with torch.no_grad():
            y_t = signal(spec, student, z, t_B, c)
            # Heun's method: the second slope is taken where the first one leads.
            first = teacher.x0(process.add_noise(y_t, z, t_B), t_B, c)
            guess = signal_step(process, y_t, first, t_B, s_B)
            second = teacher.x0(process.add_noise(guess, z, s_B), s_B, c)
            y_s = signal_step(process, y_t, 0.5 * (first + second), t_B, s_B)
            ones_B = torch.ones_like(t_B)
            top = teacher.x0(process.init_scale() * z, ones_B, c)
        change = squared_error(signal(spec, student, z, s_B, c), y_s)
        boundary = squared_error(signal(spec, student, z, ones_B, c), top)
        return {"boot": change.mean() / self.step_size**2 * 0.01, "boundary": self.boundary_weight * boundary.mean()}


def signal(spec: StudentSpec, network: nn.Module, z_BCHW: Tensor, t_B: Tensor, conditions: Conditions) -> Tensor:
    """y(z, t): the network with t as its time and the scalings of t = 1."""
    p, q, c_in = spec.parameterization.coefficients(spec.process.at(1.0))
    x = spec.process.init_scale() * z_BCHW
    extra = [value for value in (conditions.label_B, conditions.text_BLD, conditions.w_B) if value is not None]
    y: Tensor = p * x + q * network(c_in * x, spec.process.model_time(t_B), *extra)
    return y


def signal_step(process: NoiseProcess, y_t: Tensor, x0: Tensor, t_B: Tensor, s_B: Tensor) -> Tensor:
    """``x0 + rho (y_t - x0)``; rho is 0 from pure noise."""
    t, s = process.at(t_B).like(y_t), process.at(s_B).like(y_t)
    rho = (s.sigma * t.alpha) / (t.sigma * s.alpha)
    y_s: Tensor = x0 + rho * (y_t - x0)
    return y_s
