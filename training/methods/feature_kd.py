"""A smaller network for the same contract: output and features of the big student, at the states where the contract calls it.

BK-SDM (Kim et al. 2023, arXiv 2305.15798, equation 4) trains ``L_task + L_out + sum L_feat`` at noised data of any time. A
few-step student is asked at a handful of states only, and its task is what the big student answers, so here it is
``L_out + feature_weight * mean L_feat`` at the times of the contract's own tables. Three laws for the states:

* ``data``: noised data at the tables' times, as in BK-SDM.
* ``teacher``: the states of the big student's samples. Needs no image.
* ``student``: the states of the smaller network's own samples, so that it is taught where its own errors lead (Ross et al.
  2011, DAgger, arXiv 1011.0686). docs/log.md has the comparison.

The result has the teacher's contract: the same plans, table for table, and one smaller network.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import StepTable
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.features import LOSSES, FeatureLoss, Hint, relative_error, tapped
from distill_rt.training.methods.base import Networks, Phase, check_setting
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.sampling import sample
from distill_rt.training.smaller import Blocks, Smaller, smaller_network, smaller_spec
from distill_rt.training.student import draw_conditions

Inputs = tuple[Tensor, ...]
"""What the network is called with: scaled state, times, conditions, each (B, ...)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureKD:
    """Block removal and narrowing with feature distillation.

    Args:
        steps: the plan to keep; 0 keeps all of the teacher's.
        width: factor on all widths, in (0, 1]; by weight norm the strongest channels stay.
        blocks: ``all``, ``no-mid``, ``base`` (one residual block fewer a stage) or ``small`` (both).
        features: what is compared at the ends of the stages: ``hint``, ``attention``, ``similarity``, ``relational``
            or ``none``.
        feature_weight: of the mean over stages; all terms are relative errors.
        states: where the networks are compared.
    """

    name: ClassVar[str] = "feature_kd"
    follows_trajectory: ClassVar[bool] = True

    steps: int = 0
    width: float = 1.0
    blocks: Blocks = "all"
    features: FeatureLoss = "hint"
    feature_weight: float = 1.0
    states: Literal["student", "teacher", "data"] = "data"
    iterations: int = 600
    batch_size: int = 128
    peak_learning_rate: float = 2e-3
    warmup: int = 50
    ema_decay: float = 0.99

    def __post_init__(self) -> None:
        check_setting(self.feature_weight >= 0, f"feature_weight must be >= 0, got {self.feature_weight:g}")
        check_setting(self.warmup >= 0, f"warmup must not be negative, got {self.warmup}")

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        if self.iterations < 1:
            return ()
        return (Phase(name="feature distillation", network="pair", start=0, iterations=self.iterations),)

    def learning_rate(self, phase: Phase, step: int) -> float:
        """Linear warm-up (the features of a pruned network are far off at first), then linearly to zero."""
        rise = min(1.0, (step + 1) / max(self.warmup, 1))
        return self.peak_learning_rate * rise * (1.0 - step / phase.iterations)

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        if self.steps and self.steps not in teacher.plans:
            raise UsageError(
                f"{teacher.name!r} was distilled for {', '.join(map(str, teacher.steps))} steps, not {self.steps}",
                code="steps-not-in-contract",
                hint="a smaller network keeps its teacher's plans; leave --steps out to keep all of them",
            )
        if len(teacher.networks) != 1:
            raise UsageError(
                f"{teacher.name!r} has {len(teacher.networks)} networks, only a student of one can be made smaller",
                code="cannot-be-smaller",
            )
        if self.features == "attention" and teacher.networks[0].kind == "mlp":
            raise UsageError(
                "attention transfer compares positions, and points have one only",
                code="setting-invalid",
                hint="use features=hint or features=similarity",
            )
        smaller = smaller_spec(teacher.networks[0], width=self.width, blocks=self.blocks)
        plans = {n: table for n, table in teacher.plans.items() if self.steps in (0, n)}
        return dataclasses.replace(
            teacher,
            name=f"{teacher.name.removesuffix('-teacher')}-smaller",
            plans=plans,
            default_steps=self.steps or teacher.default_steps,
            networks=(smaller,),
            provenance={"method": self.name, "settings": dataclasses.asdict(self)},
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        spec = self.contract(teacher.spec)
        smaller = smaller_network(teacher.network, teacher.spec.networks[0], spec.networks[0])
        pair = Pair(smaller, hints=self.features == "hint")
        return {"student": pair.student, "pair": pair}

    def begin(self, phase: Phase, networks: Networks) -> None:
        pass

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        pair = networks["pair"]
        assert isinstance(pair, Pair)
        plans = [table for n, table in sorted(teacher.spec.plans.items()) if self.steps in (0, n)]
        table = plans[step % len(plans)]
        if self.states == "data":
            inputs = noised_inputs(teacher.spec, table, batch, draws)
        else:
            source = pair.student if self.states == "student" else teacher.network
            inputs = visited_inputs(teacher.spec, source, table, batch, draws)
        return feature_kd_loss(pair, teacher.network, inputs, self.features, self.feature_weight)

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        pass


class Pair(nn.Module):
    """What trains together: the smaller network and the projections of its features, which are not exported."""

    def __init__(self, smaller: Smaller, *, hints: bool) -> None:
        super().__init__()
        self.student = smaller.network
        self.taps = smaller.taps
        kept = {tap: matrix for tap, matrix in smaller.kept.items() if matrix is not None and hints}
        self.hints = nn.ModuleDict({tap.replace(".", "-"): Hint(matrix) for tap, matrix in kept.items()})

    def project(self, tap: str, features: Tensor) -> Tensor:
        """The student's features in the teacher's channels."""
        key = tap.replace(".", "-")
        projected: Tensor = self.hints[key](features) if key in self.hints else features
        return projected


def feature_kd_loss(
    pair: Pair, teacher: nn.Module, inputs: Inputs, features: FeatureLoss, weight: float, task: Tensor | None = None
) -> dict[str, Tensor]:
    """Relative error of the output and, times `weight`, the mean over stages of the chosen feature loss.

    Args:
        task: what the output should be by the data, (B, C, H, W), for a third term.
    """
    taps = {} if features == "none" else pair.taps
    with torch.no_grad(), tapped(teacher, set(taps.values())) as wanted:
        target = teacher(*inputs)
    with tapped(pair.student, taps) as given:
        output = pair.student(*inputs)
    output = output.float()  # losses are in float32 under autocast too
    losses = {"output": relative_error(output, target.float())}
    if task is not None:
        losses["task"] = relative_error(output, task)
    if taps:
        each = [LOSSES[features](pair.project(tap, given[tap]), wanted[of]) for tap, of in taps.items()]
        losses["features"] = weight * torch.stack(each).mean()
    return losses


class _Recorder(nn.Module):
    """Keeps what the network is called with."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.calls: list[Inputs] = []

    def forward(self, *inputs: Tensor) -> Any:
        self.calls.append(inputs)
        return self.network(*inputs)


def visited_inputs(spec: StudentSpec, network: nn.Module, table: StepTable, batch: Batch, draws: Draws) -> Inputs:
    """All calls of a table for B / NFE fresh samples with the batch's labels, so about B calls (twice that for cfg)."""
    num_samples = max(1, draws.num_samples // max(1, table.num_evaluations))
    conditions = draw_conditions(spec, batch, draws)
    recorder = _Recorder(network)
    sample(
        spec,
        [recorder],
        draws.seeds[:num_samples],
        table=table,
        labels=None if conditions.label_B is None else conditions.label_B[:num_samples].tolist(),
        guidance=None if conditions.w_B is None else conditions.w_B[:num_samples],
        batch_size=num_samples,
    )
    return tuple(torch.cat(values) for values in zip(*recorder.calls, strict=True))


def noised_inputs(spec: StudentSpec, table: StepTable, batch: Batch, draws: Draws) -> Inputs:
    """Noised data at times of the table, one per image; for cfg the condition is dropped in half of the images.

    The first call sees noise alone, whatever time it is told: a plan that starts below time 1 has no image to start from.
    """
    rows = [row for row in table.rows if row.calls_network]
    index_B = draws.integers(0, len(rows), Purpose.TIME)

    def of_row(values: list[float]) -> Tensor:
        return torch.tensor(values, device=draws.device)[index_B]

    time_B = of_row([row.time for row in rows])
    c_in = of_row([row.c_in for row in rows])[:, None, None, None]
    t_B = spec.process.t_from_model_time(time_B)
    z = draws.normal(spec.sample_shape)
    x_t = spec.process.add_noise(batch.x0_BCHW, z, t_B)
    if table.rows[0].calls_network:
        x_t = torch.where((index_B == 0)[:, None, None, None], table.init_scale * z, x_t)
    inputs = [c_in * x_t, time_B]
    if spec.uses_second_time:
        inputs.append(of_row([row.second_time or 0.0 for row in rows]))
    return (*inputs, *drawn_conditions(spec, batch, draws))


def drawn_conditions(spec: StudentSpec, batch: Batch, draws: Draws) -> Inputs:
    """Conditions as inputs of the network: those of the batch, for cfg dropped in half of the images."""
    conditions: Conditions = draw_conditions(spec, batch, draws)
    inputs = []
    if conditions.label_B is not None:
        drop_B = draws.uniform(Purpose.CONDITION_DROP) < (0.5 if spec.guidance.mode == "cfg" else 0.0)
        null = spec.condition.null_label
        inputs.append(conditions.label_B if null is None else conditions.label_B.masked_fill(drop_B, null))
    if spec.guidance.mode == "embedded" and conditions.w_B is not None:
        inputs.append(conditions.w_B)
    return tuple(inputs)
