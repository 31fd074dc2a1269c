"""What methods share that train nothing: the student is the teacher, guidance included, with a table that was searched for.

The search looks at the teacher's network, so it runs before the contract is fixed (`Searches`), and what it finds stands in the
settings like a value that was given.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import StepTable
from distill_rt.training.data import Batch, Dataset
from distill_rt.training.device import device_of
from distill_rt.training.draws import Draws
from distill_rt.training.methods.base import Networks, Phase
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.student import distilled_contract, draw_conditions, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class Untrained:
    """A method that derives from it adds its settings, `name`, `table` and `searched`.

    Args:
        steps: the only plan.
    """

    name: ClassVar[str]
    follows_trajectory: ClassVar[bool] = True

    steps: int = 4

    def table(self, teacher: StudentSpec) -> StepTable:
        """Of the settings as they are."""
        raise NotImplementedError

    @property
    def ema_decay(self) -> float:
        return 0.0

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        return ()

    def learning_rate(self, phase: Phase, step: int) -> float:
        return 0.0

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        """The teacher's, guidance by two evaluations included, with one plan."""
        spec = distilled_contract(
            teacher,
            method=self.name,
            plans={self.steps: self.table(teacher)},
            default_steps=self.steps,
            settings=dataclasses.asdict(self),
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


def teacher_batch(teacher: Teacher, dataset: Dataset, seed: int, num_samples: int) -> tuple[Tensor, Conditions]:
    """Unit noise, shape (B, C, H, W), and conditions (scales of guidance from their whole range), where the teacher is."""
    device = device_of(teacher.network)
    draws = Draws(seed, 0, num_samples, device=device)
    batch = dataset.batch(draws).to(device)
    return draws.normal(teacher.spec.sample_shape), draw_conditions(teacher.spec, batch, draws)


def numbers(name: str, text: str) -> list[float]:
    """The numbers of a setting that lists them.

    Raises:
        UsageError: something that is none.
    """
    try:
        return [float(number) for number in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"{name} are numbers with commas between them, got {text!r:.80}", code="setting-invalid"
        ) from error
