"""A smaller diffusion model: blocks removed, then trained on the data, the big model's answer and its features.

BK-SDM (Kim et al. 2023, arXiv 2305.15798), equation 4: ``L_task + L_out + L_feat``, all weights 1, at noised data of any time.
`feature_kd` with ``blocks=base`` and the task of the data beside it; terms are relative errors and L_feat is a mean over
stages, where the paper adds plain squares (equal for L_task and L_out in noise prediction, whose target has variance 1).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.methods.base import Networks, Phase, check_setting
from distill_rt.training.methods.feature_kd import FeatureKD, Pair, drawn_conditions, feature_kd_loss
from distill_rt.training.predictor import Teacher
from distill_rt.training.smaller import Blocks


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockRemoval(FeatureKD):
    """Settings as in `FeatureKD`; states are noised data.

    Args:
        task_weight: of the error against the data.
    """

    name: ClassVar[str] = "bk_sdm"

    blocks: Blocks = "base"
    task_weight: float = 1.0

    def __post_init__(self) -> None:
        FeatureKD.__post_init__(self)
        check_setting(self.task_weight >= 0, f"task_weight must be >= 0, got {self.task_weight:g}")
        check_setting(self.states == "data", f"bk_sdm has states=data, got {self.states}")

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        made = teacher.provenance
        if made.get("teacher") is not None and made.get("method") != self.name:
            raise UsageError(
                f"{teacher.name!r} was distilled by {made.get('method')}: its answers are not those of the data",
                code="teacher-not-denoising",
                hint="use feature_kd, or make the many-step teacher smaller",
            )
        return FeatureKD.phases(self, teacher)

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec, pair = teacher.spec, networks["pair"]
        assert isinstance(pair, Pair)
        t_B = draws.uniform(Purpose.TIME)
        x_t = spec.process.add_noise(batch.x0_BCHW, draws.normal(spec.sample_shape), t_B)
        level = spec.process.at(t_B).like(x_t)
        scaled = spec.parameterization.coefficients(level)[2] * x_t
        inputs = (scaled, spec.process.model_time(t_B), *drawn_conditions(spec, batch, draws))
        truth = spec.parameterization.target(x_t, batch.x0_BCHW, level)
        losses = feature_kd_loss(pair, teacher.network, inputs, self.features, self.feature_weight, truth)
        return losses | {"task": self.task_weight * losses["task"]}
