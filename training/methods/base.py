"""What a training method is: a frozen dataclass of its hyper-parameters with a handful of pure functions.

A method never sees the loop: the trainer owns optimisers, averages, checkpoints and progress, and asks the method which
network to update (`phase`), for its losses (`losses`) and, at the end, for the contract of what it made (`contract`).
To add one, write a dataclass with these members and list it in `distill_rt.training.methods.METHODS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import Tensor, nn

from distill_rt.core.spec import StudentSpec
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws
from distill_rt.training.predictor import Teacher

Networks = Mapping[str, nn.Module]


@dataclass(frozen=True, kw_only=True, slots=True)
class Phase:
    """A stretch of training that updates one network with one objective.

    Args:
        name: for logs, for example "16 steps".
        network: key of the network that is updated.
        start, iterations: first step and number of steps. The optimiser starts afresh at `start`.
        target: what the objective needs to know, for example the number of steps that the student learns.
    """

    name: str
    network: str = "student"
    start: int
    iterations: int
    target: int = 0


class Method(Protocol):
    """Hyper-parameters and functions of one method; every field of the dataclass can be set by ``--set name=value``."""

    name: ClassVar[str]

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


def sequence(phases: list[tuple[str, int, int]]) -> tuple[Phase, ...]:
    """Phases one after the other from (name, iterations, target); those without iterations are left out."""
    result, start = [], 0
    for name, iterations, target in phases:
        if iterations > 0:
            result.append(Phase(name=name, start=start, iterations=iterations, target=target))
            start += iterations
    return tuple(result)
