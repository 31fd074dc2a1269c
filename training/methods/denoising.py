"""Teacher training: denoising with the condition dropped now and then, for classifier-free guidance.

Regression of the raw output on the network's own target (v for v prediction: Salimans & Ho 2022, section 4), the condition
replaced by the null label or the empty prompt with probability `drop` (Ho & Salimans 2022, algorithm 1), a running average of
the weights.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill_rt.core.spec import StudentSpec
from distill_rt.models import build_network
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.losses import squared_error
from distill_rt.training.methods.base import Networks, Phase, check_setting, sequence
from distill_rt.training.predictor import Teacher


@dataclass(frozen=True, kw_only=True, slots=True)
class Denoising:
    """Args: steps: of training; drop: probability of training without the condition; ema_decay: of the exported average."""

    name: ClassVar[str] = "denoising"
    follows_trajectory: ClassVar[bool] = True

    steps: int = 1500
    batch_size: int = 128
    peak_learning_rate: float = 2e-3
    warmup: int = 100
    drop: float = 0.1
    ema_decay: float = 0.995

    def __post_init__(self) -> None:
        check_setting(0.0 <= self.drop <= 1.0, f"drop must be 0 to 1, got {self.drop:g}")
        check_setting(self.warmup >= 0, f"warmup must not be negative, got {self.warmup}")

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        return sequence([("denoising", self.steps, 0)])

    def learning_rate(self, phase: Phase, step: int) -> float:
        """Linear warm-up, then a cosine to zero."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        return self.peak_learning_rate * rise * 0.5 * (1.0 + math.cos(math.pi * step / phase.iterations))

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        return teacher

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        return {"student": build_network(teacher.spec.networks[0])}

    def begin(self, phase: Phase, networks: Networks) -> None:
        pass

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec = teacher.spec
        t_B, eps = draws.uniform(Purpose.TIME), draws.normal(spec.sample_shape)
        x_t = spec.process.add_noise(batch.x0_BCHW, eps, t_B)
        level = spec.process.at(t_B).like(x_t)
        inputs = [spec.parameterization.coefficients(level)[2] * x_t, spec.process.model_time(t_B)]
        if batch.label_B is not None:
            null = spec.condition.null_label
            dropped = draws.uniform(Purpose.CONDITION_DROP) < self.drop
            inputs.append(batch.label_B if null is None else batch.label_B.masked_fill(dropped, null))
        if batch.text_BLD is not None:
            assert teacher.null_text_LD is not None
            dropped = draws.uniform(Purpose.CONDITION_DROP) < self.drop
            inputs.append(torch.where(dropped[:, None, None], teacher.null_text_LD, batch.text_BLD))
        target = spec.parameterization.target(x_t, batch.x0_BCHW, level)
        return {"denoising": squared_error(networks["student"](*inputs), target).mean()}

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        pass
