"""A solver made for one teacher: its own times, and its own weights in every step.

Shaul et al. 2024 (Bespoke Non-Stationary Solvers, arXiv 2403.01329); `solver_fit` says how both are found here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.grid import visited_levels
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import StepTable
from distill_rt.training.data import Dataset
from distill_rt.training.methods.base import check_setting
from distill_rt.training.methods.untrained import Untrained, numbers, teacher_batch
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Teacher
from distill_rt.training.progress import Progress
from distill_rt.training.solver_fit import HISTORY, fit_solver, search_solver
from distill_rt.training.trajectories import record


@dataclass(frozen=True, kw_only=True, slots=True)
class BespokeSolver(Untrained):
    """Search of the times, fit of the weights.

    Args:
        steps: the only plan. One step is blurred on images: it is the mean of what the noise may become.
        times: where the network is evaluated, for example ``0.9,0.7,0.4,0.15``; empty is searched for.
        weights: of every step, with semicolons between steps: of the state, of the prediction, and of earlier predictions,
            newest first (as many as there are, three at most). Empty is fitted. A contract that is asked for before has DDIM's
            steps.
        intervals: of the uniform grid that times are chosen from, and that the teacher's trajectories are computed on.
        batch_size: trajectories; a few thousand for points in the plane, which have few elements each. Those of a guided
            teacher have scales from its whole range, so that one table serves all of it.
    """

    name: ClassVar[str] = "bespoke"

    times: str = ""
    weights: str = ""
    intervals: int = 60
    batch_size: int = 128

    def __post_init__(self) -> None:
        check_setting(
            1 <= self.steps <= self.intervals,
            f"bespoke chooses steps of intervals: 1 <= steps <= intervals, got {self.steps} and {self.intervals}",
        )
        check_setting(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}")
        if self.times:
            check_setting(
                len(numbers("times", self.times)) == self.steps,
                f"{self.steps} steps need as many times, got times={self.times}",
            )
        if self.weights:
            check_setting(bool(self.times), "weights belong to times: set both, or times alone, or neither")
            counts, expected = [len(step) for step in self._weights()], [2 + min(i, HISTORY) for i in range(self.steps)]
            check_setting(
                counts == expected, f"the weights of {self.steps} steps are {expected} in number, got {counts}"
            )

    def searched(
        self, teacher: Teacher, dataset: Dataset, seed: int, progress: Progress | None = None
    ) -> BespokeSolver:
        if self.weights:
            return self
        given = _rounded(numbers("times", self.times)) if self.times else []
        if given:
            visited_levels(teacher.process, given, None)  # refuses what does not fall
        grid = sorted({*_rounded(uniform_times(self.intervals)), *given, 0.0}, reverse=True)
        z, conditions = teacher_batch(teacher, dataset, seed, self.batch_size)
        trajectories = record(teacher, z, grid, conditions, progress)
        fixed = [grid.index(t) for t in given]
        found = fit_solver(trajectories, fixed) if fixed else search_solver(trajectories, self.steps, progress)
        return dataclasses.replace(
            self,
            times=_text([grid[i] for i in found.indices]),
            weights=";".join(_text(step) for step in found.weights),
        )

    def table(self, teacher: StudentSpec) -> StepTable:
        times = numbers("times", self.times) if self.times else uniform_times(self.steps)
        table = ddim(teacher.process, teacher.parameterization, times)
        if not self.weights:
            return table
        rows = []
        for row, (r, g, *history) in zip(table.rows, self._weights(), strict=True):
            h1, h2, h3 = (*history, 0.0, 0.0, 0.0)[:HISTORY]
            rows.append(dataclasses.replace(row, r=r, g=g, h1=h1, h2=h2, h3=h3))
        return dataclasses.replace(table, rows=tuple(rows))

    def _weights(self) -> list[list[float]]:
        return [numbers("weights", step) for step in self.weights.split(";")]


def _rounded(times: Sequence[float]) -> list[float]:
    """As they are written, so that a time that was found is the grid's when it is given."""
    return [round(t, 9) for t in times]


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:.9g}" for value in values)
