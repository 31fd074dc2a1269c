"""Guidance in the condition: one evaluation under a sharper label answers as two evaluations and a scale did.

Zhou et al. 2025 (DICE, arXiv 2502.03726): a small network r moves the embedding of a condition, ``c' = c + r(c, null)``, so
that the frozen denoiser under c' gives what guidance at one scale w gives under c; the loss is the error of the raw output. It
looks at embeddings only, so a student of labels holds c' for every label in its table, and r is not exported: the student is
the teacher's network to the last weight but for that table.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import Guidance, StudentSpec
from distill_rt.models.conditioned import ConditionedNetwork
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.losses import squared_error
from distill_rt.training.methods.base import Networks, OneStage, Phase, check_setting
from distill_rt.training.methods.guidance import many_step_table, require_two_evaluations
from distill_rt.training.predictor import Conditions, Predictor, Teacher
from distill_rt.training.student import distilled_contract, student_network


@dataclass(frozen=True, kw_only=True, slots=True)
class ConditionSharpening(OneStage):
    """Guidance distilled into the embedding of the label.

    Args:
        steps: the plan that the contract offers by default; 2, 4 and 8 times as many are offered too.
        w: the scale, within the teacher's contract; 0 is its default.
        hidden: width of r.
    """

    name: ClassVar[str] = "dice"

    steps: int = 4
    w: float = 0.0
    hidden: int = 256
    iterations: int = 600

    def __post_init__(self) -> None:
        check_setting(
            self.steps >= 1 and self.hidden >= 1,
            f"steps and hidden must be at least 1, got {self.steps} and {self.hidden}",
        )

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        require_two_evaluations(teacher)
        if teacher.condition.kind != "label":
            raise UsageError(
                f"dice keeps what it learns in a table of labels; {teacher.name!r} has condition {teacher.condition.kind!r}",
                code="no-label-table",
                hint="use guidance, which takes any guided teacher",
            )
        if self.iterations < 1:
            return ()
        return (Phase(name=self.name, network="sharpener", start=0, iterations=self.iterations),)

    def scale(self, teacher: StudentSpec) -> float:
        return teacher.check_guidance(self.w or None)

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        """No choice of w: the one that was distilled stands in the guidance that the contract does not offer."""
        plans = {n: many_step_table(teacher, n) for n in (self.steps, 2 * self.steps, 4 * self.steps, 8 * self.steps)}
        spec = distilled_contract(
            teacher,
            method=self.name,
            plans=plans,
            default_steps=self.steps,
            settings=dataclasses.asdict(self),
            guided=False,
        )
        w = self.scale(teacher)
        return dataclasses.replace(spec, guidance=Guidance(min=w, max=w, default=w))

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        student = student_network(teacher, self.contract(teacher.spec))
        null = teacher.spec.condition.null_label
        assert null is not None
        return {"student": student, "sharpener": Sharpener(label_table(student), null, self.hidden)}

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, process = teacher.spec, teacher.process
        t_B = draws.uniform(Purpose.TIME)
        x_t = process.add_noise(batch.x0_BCHW, draws.normal(spec.sample_shape), t_B)
        w_B = t_B.new_full((len(t_B),), self.scale(spec))
        wanted = teacher.x0(x_t, t_B, Conditions(label_B=batch.label_B, w_B=w_B))
        sharpened = UnderLabels(teacher.network, networks["sharpener"]())
        x0 = Predictor.of(spec, sharpened).x0(x_t, t_B, Conditions(label_B=batch.label_B))
        q = spec.parameterization.coefficients(process.at(t_B))[1]
        return {"dice": (squared_error(x0, wanted) / q**2).mean()}

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        with torch.no_grad():
            label_table(networks["student"]).copy_(networks["sharpener"]())


class Sharpener(nn.Module):
    """r over a whole table of embeddings; it adds nothing at the start, and nothing to the null label ever.

    Legend: N labels with the null label, E width of an embedding.

    Args:
        table_NE: the teacher's embeddings.
        null: row of the null label.
        hidden: width of the layer between.
    """

    table_NE: Tensor

    def __init__(self, table_NE: Tensor, null: int, hidden: int) -> None:
        super().__init__()
        self.register_buffer("table_NE", table_NE.detach().clone())
        self.null = null
        width = table_NE.shape[1]
        self.layers = nn.Sequential(nn.Linear(2 * width, hidden), nn.SiLU(), nn.Linear(hidden, width))
        for parameter in self.layers[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self) -> Tensor:
        """c' of every label, (N, E)."""
        null_NE = self.table_NE[self.null].expand_as(self.table_NE)
        moved_NE = self.layers(torch.cat([self.table_NE, null_NE], dim=1))
        keeps_N = torch.arange(len(self.table_NE), device=self.table_NE.device) == self.null
        sharpened: Tensor = self.table_NE + moved_NE.masked_fill(keeps_N[:, None], 0.0)
        return sharpened


class UnderLabels(nn.Module):
    """A frozen network whose table of labels is another one, through which gradients flow."""

    def __init__(self, network: nn.Module, table_NE: Tensor) -> None:
        super().__init__()
        self.network = network
        self.table_NE = table_NE

    def forward(self, *inputs: Tensor) -> Tensor:
        out: Tensor = torch.func.functional_call(self.network, {"label.weight": self.table_NE}, inputs)
        return out


def label_table(network: nn.Module) -> Tensor:
    """The embeddings of a network's labels, (N, E)."""
    assert isinstance(network, ConditionedNetwork)
    assert network.label is not None
    return network.label.weight
