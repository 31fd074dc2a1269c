"""Better times for a teacher's own steps: nothing is trained, the student is the teacher with another table.

Chen et al. 2024 (GITS, arXiv 2405.11326); `schedule_search` has the search. It looks at the teacher's network, so it runs
before the contract is fixed, and what it finds stands in the settings like a value that was given.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from distill_rt.core.errors import UsageError
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.spec import StudentSpec
from distill_rt.training.data import Batch, Dataset
from distill_rt.training.draws import Draws
from distill_rt.training.methods.base import Networks, Phase, check_setting
from distill_rt.training.plans import uniform_times
from distill_rt.training.predictor import Teacher
from distill_rt.training.schedule_search import cheapest_path, jump_costs
from distill_rt.training.student import distilled_contract, draw_conditions, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSearch:
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
    follows_trajectory: ClassVar[bool] = True

    steps: int = 4
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
                len(self._times()) == self.steps, f"{self.steps} steps need as many times, got times={self.times}"
            )

    def _times(self) -> list[float]:
        """Those that were found or given, else uniform ones."""
        if not self.times:
            return uniform_times(self.steps)
        try:
            return [float(t) for t in self.times.split(",")]
        except ValueError as error:
            raise UsageError(
                f"times are numbers with commas between them, got {self.times!r:.80}", code="setting-invalid"
            ) from error

    @property
    def ema_decay(self) -> float:
        return 0.0

    def searched(self, teacher: Teacher, dataset: Dataset, seed: int) -> ScheduleSearch:
        if self.times:
            return self
        draws = Draws(seed, 0, self.batch_size)
        grid = [*uniform_times(self.intervals), 0.0]
        x = teacher.process.init_scale() * draws.normal(teacher.spec.sample_shape)
        costs = jump_costs(
            teacher, x, grid, draw_conditions(teacher.spec, dataset.batch(draws), draws), power=self.power
        )
        path = cheapest_path(costs, self.steps, step_weight=self.step_weight)
        return dataclasses.replace(self, times=",".join(f"{grid[i]:.6g}" for i in path[:-1]))

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        return ()

    def learning_rate(self, phase: Phase, step: int) -> float:
        return 0.0

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        """The teacher's, guidance by two evaluations included, with one plan."""
        solver = ddim if self.solver == "ddim" else dpmpp_2m
        plans = {self.steps: solver(teacher.process, teacher.parameterization, self._times())}
        spec = distilled_contract(
            teacher, method=self.name, plans=plans, default_steps=self.steps, settings=dataclasses.asdict(self)
        )
        return dataclasses.replace(spec, guidance=teacher.guidance, networks=teacher.networks)

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        return {"student": student_network(teacher, self.contract(teacher.spec))}

    def begin(self, phase: Phase, networks: Networks) -> None:
        pass

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        return {}

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        pass
