"""MeanFlow: the average velocity from t to s follows from the velocity at t and its own change along the trajectory.

Geng et al. 2025 (arXiv 2505.13447), equation 6, in the rectified flow's coordinates (`flow_map`): the average velocity u over
[s, t] obeys ``u(x_t, t, s) = v(x_t, t) - (t - s) du/dt``, the total derivative along the trajectory. The student regresses on
the right-hand side, its own u without gradient. v is the teacher's (as in Sabour et al. 2025, AYF, arXiv 2506.14603), or the
data's own, ``eps - x0``.

Over an interval [m, t] the identity is exact without a limit: ``(t - s) u(x_t) = (t - m) v + (m - s) u(x_m)``, v the mean
velocity of the interval, hence ``u(x_t) = v - (m - s) (u(x_t) - u(x_m)) / (t - m)``. See `tangents` for why it is the default.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from distill_rt.core.prediction import inverse_ddim_target
from distill_rt.core.spec import StudentSpec
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.flow_map import flow_speed, flow_time, two_time_contract, two_time_x0, velocity
from distill_rt.training.losses import squared_error
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting
from distill_rt.training.predictor import Teacher
from distill_rt.training.tangents import (
    MIN_TIME,
    SHORTEST,
    Source,
    check_interval,
    conditions_of,
    derivative,
    earlier,
    slope,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class MeanFlow(OneStage):
    """MeanFlow.

    Args:
        steps: largest plan; every power of two below it is offered too, all deterministic.
        source: of the velocity; a student of the data learns no guidance.
        interval: longest t - m in process time; 0 takes the derivative.
        instant: share of the batch with s = t, which learns v itself.
        power, floor: p and c of the weight ``1 / (error + c)^p`` (their equation 22).
    """

    name: ClassVar[str] = "meanflow"

    steps: int = 4
    source: Source = "teacher"
    interval: float = 0.05
    instant: float = 0.25
    power: float = 0.5
    floor: float = 0.001
    iterations: int = 3000

    def __post_init__(self) -> None:
        check_setting(self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        check_setting(0.0 <= self.instant < 1.0, f"instant must be in [0, 1), got {self.instant:g}")
        check_setting(0.0 <= self.power <= 1.0, f"power must be 0 to 1, got {self.power:g}")
        check_setting(self.floor > 0.0, f"floor must be positive, got {self.floor:g}")
        check_interval(self.interval)

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        return two_time_contract(
            teacher,
            method=self.name,
            steps=self.steps,
            settings=dataclasses.asdict(self),
            guided=self.source == "teacher",
        )

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, process, student = teacher.spec, teacher.process, networks["student"]
        data = batch.x0_BCHW if self.source == "data" else None
        c = conditions_of(self.source, teacher, batch, draws)
        t_B, s_B = self.times(draws)
        x_t = process.add_noise(batch.x0_BCHW, draws.normal(spec.sample_shape), t_B)

        def average(x_BCHW: Tensor, time_B: Tensor) -> Tensor:
            return velocity(process, x_BCHW, two_time_x0(spec, student, x_BCHW, time_B, s_B, c), time_B)

        u = average(x_t, t_B)
        tau_B, end_B = flow_time(process, t_B), flow_time(process, s_B)
        with torch.no_grad():
            if self.interval:
                m_B = torch.minimum(torch.maximum(t_B - self.interval, s_B).clamp(min=SHORTEST), t_B - SHORTEST)
                x_m = earlier(teacher, x_t, t_B, m_B, c, data)
                x0 = inverse_ddim_target(x_t, x_m, process.at(t_B), process.at(m_B))
                tau_m_B = flow_time(process, m_B)
                left_B, change = (tau_m_B - end_B).clamp(min=0.0) / (tau_B - tau_m_B), u - average(x_m, m_B)
            else:
                x0 = teacher.x0(x_t, t_B, c) if data is None else data
                change = derivative(average, x_t, t_B, slope(process, x_t, x0, t_B))
                left_B = (tau_B - end_B) / flow_speed(process, t_B)
            wanted = velocity(process, x_t, x0, t_B) - left_B[:, None, None, None] * change
        error_B = squared_error(u, wanted)
        return {"meanflow": (error_B / (error_B.detach() + self.floor) ** self.power).mean()}

    def times(self, draws: Draws) -> tuple[Tensor, Tensor]:
        """t and s <= t: the larger and the smaller of two uniform times, or s = t."""
        a_B, b_B = draws.uniform(Purpose.TIME), draws.uniform(Purpose.SECOND_TIME)
        t_B = torch.maximum(a_B, b_B).clamp(min=MIN_TIME)
        same_B = draws.uniform(Purpose.CONDITION_DROP) < self.instant
        return t_B, torch.where(same_B, t_B, torch.minimum(a_B, b_B))
