"""What a training method is: a frozen dataclass of its hyper-parameters with a handful of pure functions.

A method never sees the loop: the trainer owns optimisers, averages, checkpoints and progress, and asks the method which
network to update (`phase`), for its losses (`losses`) and, at the end, for the contract of what it made (`contract`).
To add one, derive from `OneStage` (or write a dataclass with the members of `Method`) and list it in
`distill_rt.training.methods.METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.training.data import Batch, Dataset
from distill_rt.training.draws import Draws
from distill_rt.training.predictor import Teacher
from distill_rt.training.progress import Progress
from distill_rt.training.student import student_network

Networks = Mapping[str, nn.Module]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of training that updates one network with one objective.

    Args:
        name: for logs, for example "16 steps".
        network: key of the network that is updated.
        start, iterations: first step and number of steps. The optimiser starts afresh at `start`.
        target: what the objective needs to know, for example the number of steps that the student learns.
        rates: (part of the network by name, factor of the learning rate), for parts that learn faster or slower.
    """

    name: str
    network: str = "student"
    start: int
    iterations: int
    target: int = 0
    rates: tuple[tuple[str, float], ...] = ()


class Method(Protocol):
    """Hyper-parameters and functions of one method; every field of the dataclass can be set by ``--set name=value``."""

    name: ClassVar[str]

    follows_trajectory: ClassVar[bool]
    """Whether a deterministic plan claims the teacher's image of the same noise (quality is held against it); methods that
    match distributions only do not."""

    @property
    def batch_size(self) -> int: ...

    @property
    def ema_decay(self) -> float:
        """Average of the student that is exported; 0 exports the live weights."""
        ...

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        """All phases, in order, without gaps."""
        ...

    def learning_rate(self, phase: Phase, step: int) -> float: ...

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        """The contract of the student, with its own step tables."""
        ...

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        """Fresh networks: ``student`` and whatever else must be in a checkpoint."""
        ...

    def begin(self, phase: Phase, networks: Networks) -> None:
        """Called before the first step of a phase (refresh copies)."""
        ...

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        """Named scalar losses; their sum is minimised."""
        ...

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        """Called after the update (averages that the method itself needs)."""
        ...


@runtime_checkable
class Searches(Protocol):
    """A `Method` whose contract depends on the teacher's network too. It may train nothing (no phases)."""

    def searched(self, teacher: Teacher, dataset: Dataset, seed: int, progress: Progress | None = None) -> Method:
        """The method with what it found among its settings, so that everything that follows, the contract first of all, is a
        function of the settings as it is for others. Called once, before the run, with the teacher where the run computes;
        equal seeds must find equal settings."""
        ...


@runtime_checkable
class Grouped(Protocol):
    """A `Method` whose loss compares images of a group with each other: every backward pass must see whole groups."""

    @property
    def group(self) -> int:
        """Images of a group, which stand side by side in the batch."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class OneStage:
    """What most methods share: one network, one objective, a learning rate that falls to zero in every phase.

    A method that derives from it adds its settings, `name`, `contract` and `losses`.

    Args:
        iterations: training steps.
        batch_size: images of one step.
        peak_learning_rate: at the start of a phase; it falls linearly to zero.
        ema_decay: of the average that is exported; 0 exports the live weights.
    """

    name: ClassVar[str]
    follows_trajectory: ClassVar[bool] = True

    iterations: int = 1200
    batch_size: int = 128
    peak_learning_rate: float = 1e-3
    ema_decay: float = 0.99

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        return sequence([(self.name, self.iterations, 0)])

    def learning_rate(self, phase: Phase, step: int) -> float:
        return self.peak_learning_rate * (1.0 - (step - phase.start) / phase.iterations)

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        raise NotImplementedError

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        return {"student": student_network(teacher, self.contract(teacher.spec))}

    def begin(self, phase: Phase, networks: Networks) -> None:
        pass

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        pass


def check_setting(ok: bool, expected: str) -> None:
    """Refuse a setting out of its range.

    Raises:
        UsageError: `expected` says what the range is and what came.
    """
    if not ok:
        raise UsageError(expected, code="setting-invalid")


def check_start(start: float) -> None:
    """Refuse a process time at which no student can start.

    Raises:
        UsageError: not above 0 and at most 1.
    """
    check_setting(0.0 < start <= 1.0, f"start must be above 0 and at most 1, got {start:g}")


def check_trained(**iterations: int) -> None:
    """Refuse a stage without a training step, whose student would not be what its contract says.

    Raises:
        UsageError: a number below 1.
    """
    for name, number in iterations.items():
        check_setting(number >= 1, f"{name} must be at least 1, got {number}")


def sequence(phases: list[tuple[str, int, int]]) -> tuple[Phase, ...]:
    """Phases one after the other from (name, iterations, target); those without iterations are left out."""
    result, start = [], 0
    for name, iterations, target in phases:
        if iterations > 0:
            result.append(Phase(name=name, start=start, iterations=iterations, target=target))
            start += iterations
    return tuple(result)
