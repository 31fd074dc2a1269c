"""A teacher's own trajectories: what a search of times or of a solver measures itself against.

Legend: G intervals of the grid, B trajectories, C channels, H rows, W columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_rt.core.errors import ResourceError
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectories:
    """States of a teacher at all times of a grid that falls from 1 to 0, from the same noise.

    Args:
        states: (B, C, H, W) for each of the G + 1 times.
        predictions: of x0 there, for all but the last.
    """

    teacher: Teacher
    times: tuple[float, ...]
    states: tuple[Tensor, ...]
    predictions: tuple[Tensor, ...]
    conditions: Conditions

    def x0(self, x_BCHW: Tensor, index: int) -> Tensor:
        """The teacher's prediction for other states at a time of the grid."""
        return self.teacher.x0(x_BCHW, x_BCHW.new_full((len(x_BCHW),), self.times[index]), self.conditions)


def record(
    teacher: Teacher,
    z_BCHW: Tensor,
    times: Sequence[float],
    conditions: Conditions,
    progress: Progress | None = None,
) -> Trajectories:
    """Second-order steps from time to time.

    Args:
        z_BCHW: unit noise.
        times: strictly falling, the first is 1, the last 0.

    Raises:
        ResourceError: a state is not finite.
    """
    times_GB = [z_BCHW.new_full((len(z_BCHW),), t) for t in times]
    states, predictions = [teacher.process.init_scale(times[0]) * z_BCHW], []
    for i, (t_B, s_B) in enumerate(itertools.pairwise(times_GB)):
        x, x0 = states[-1], teacher.x0(states[-1], t_B, conditions)
        x0_s = teacher.x0(teacher.step_with(x, x0, t_B, s_B), s_B, conditions)
        states.append(teacher.step_with(x, 0.5 * (x0 + x0_s), t_B, s_B))
        if not bool(torch.isfinite(states[-1]).all()):
            raise ResourceError(
                f"the teacher's trajectories are not finite below time {times[i]:g}",
                code="teacher-diverged",
                hint="its network answers NaN or infinity there: train it again, or import it again in float32",
            )
        predictions.append(x0)
        if progress is not None:
            progress("the teacher's trajectories", i + 1, len(times) - 1, None)
    return Trajectories(
        teacher=teacher,
        times=tuple(times),
        states=tuple(states),
        predictions=tuple(predictions),
        conditions=conditions,
    )
