"""Better times for a teacher's own steps.

Chen et al. 2024 (GITS, arXiv 2405.11326); `schedule_search` has the search.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import StepTable
from distill_rt.training.data import Dataset
from distill_rt.training.methods.base import check_setting
from distill_rt.training.methods.untrained import Untrained, numbers, teacher_batch
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Teacher
from distill_rt.training.progress import Progress
from distill_rt.training.schedule_search import cheapest_path, jump_costs
from distill_rt.training.trajectories import record


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSearch(Untrained):
    """Search of the times.

    Args:
        steps: the only plan.
        times: where the network is evaluated, for example ``1,0.7,0.4,0.2``; empty is searched for. A contract that is asked
            for before the search has uniform times.
        intervals: of the uniform grid that times are chosen from.
        batch_size: trajectories of the teacher that the costs are measured on.
        power: of the errors that are added: 1 adds distances (the paper), 2 their squares.
        step_weight: factor by which every further step's cost counts more (the paper's discount coefficient, 1.15
            there).
        solver: ``ddim`` or ``dpmpp_2m``; costs are those of DDIM jumps for both, as in the paper.
    """

    name: ClassVar[str] = "gits"

    times: str = ""
    intervals: int = 60
    batch_size: int = 128
    power: float = 1.0
    step_weight: float = 1.0
    solver: Literal["ddim", "dpmpp_2m"] = "dpmpp_2m"

    def __post_init__(self) -> None:
        check_setting(
            1 <= self.steps <= self.intervals,
            f"gits chooses steps of intervals: 1 <= steps <= intervals, got {self.steps} and {self.intervals}",
        )
        check_setting(self.batch_size >= 1, f"batch_size must be at least 1, got {self.batch_size}")
        check_setting(
            self.power > 0.0 and self.step_weight > 0.0,
            f"power and step_weight must be positive, got {self.power:g} and {self.step_weight:g}",
        )
        if self.times:
            check_setting(
                len(numbers("times", self.times)) == self.steps,
                f"{self.steps} steps need as many times, got times={self.times}",
            )

    def searched(
        self, teacher: Teacher, dataset: Dataset, seed: int, progress: Progress | None = None
    ) -> ScheduleSearch:
        if self.times:
            return self
        z, conditions = teacher_batch(teacher, dataset, seed, self.batch_size)
        grid = [*uniform_times(self.intervals), 0.0]
        costs = jump_costs(record(teacher, z, grid, conditions, progress), power=self.power)
        path = cheapest_path(costs, self.steps, step_weight=self.step_weight)
        return dataclasses.replace(self, times=",".join(f"{grid[i]:.6g}" for i in path[:-1]))

    def table(self, teacher: StudentSpec) -> StepTable:
        solver = ddim if self.solver == "ddim" else dpmpp_2m
        times = numbers("times", self.times) if self.times else uniform_times(self.steps)
        return solver(teacher.process, teacher.parameterization, times)
