"""Latent consistency distillation: consistency over long skips of a coarse grid, the guidance scale an input.

Luo et al. 2023 (LCM, arXiv 2310.04378), algorithm 1: a DDIM step of the guided teacher from one level of a grid of 50 to the
next (a skip of 20 of 1,000 timesteps), pseudo-Huber distance to a slow copy (decay 0.95). Where the teacher's prediction has
no boundary of its own (noise or plain x0 prediction) the student gets theirs (`LCMBoundary`).
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from distill_rt.core.prediction import LCMBoundary, Parameterization, Prediction
from distill_rt.core.spec import StudentSpec
from distill_rt.training.consistency import both_ends, grid_pair, renoise_plans
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws
from distill_rt.training.lora import adapted, merge_into, require_adapters
from distill_rt.training.losses import pseudo_huber
from distill_rt.training.methods.base import Networks, Phase, check_setting, sequence
from distill_rt.training.methods.consistency import Consistency
from distill_rt.training.predictor import Teacher
from distill_rt.training.student import distilled_contract, draw_conditions


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentConsistency(Consistency):
    """Settings as in `Consistency`; `pairs` is fixed.

    Args:
        lora_rank: of low-rank adapters that train in place of the weights and end merged into them (Luo et al. 2023, LCM-LoRA,
            arXiv 2311.05556); 0 trains the weights.
    """

    name: ClassVar[str] = "lcm"

    num_levels: int = 50
    solver_order: int = 1
    huber: float = 0.01
    iterations: int = 2000
    lora_rank: int = 0

    def __post_init__(self) -> None:
        Consistency.__post_init__(self)
        check_setting(self.pairs == "fixed", f"lcm has pairs=fixed, got {self.pairs}")
        check_setting(self.huber > 0.0, f"huber must be positive, got {self.huber:g}")
        check_setting(self.lora_rank >= 0, f"lora_rank must not be negative, got {self.lora_rank}")

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        phases = sequence([(self.name, self.iterations, 0)])
        if not self.lora_rank:
            return phases
        require_adapters()
        return tuple(dataclasses.replace(phase, network="adapted") for phase in phases)

    def contract(self, teacher: StudentSpec) -> StudentSpec:
        bounded = dataclasses.replace(teacher, parameterization=with_boundary(teacher.parameterization))
        return distilled_contract(
            bounded,
            method=self.name,
            plans=renoise_plans(bounded, self.steps, power=self.plan_power),
            default_steps=self.steps,
            settings=dataclasses.asdict(self),
        )

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        networks = Consistency.networks(self, teacher)
        if self.lora_rank:
            networks["adapted"] = adapted(copy.deepcopy(networks["student"]), self.lora_rank)
        return networks

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        spec = self.contract(teacher.spec)
        conditions = draw_conditions(teacher.spec, batch, draws)
        t_B, s_B, _ = grid_pair(self.num_levels, draws)
        x_t = spec.process.add_noise(batch.x0_BCHW, draws.normal(spec.sample_shape), t_B)
        x_s = teacher.step(x_t, t_B, s_B, conditions, order=self.solver_order)
        trained, slow = networks[phase.network], networks["target"]
        x0, target = both_ends(spec, trained, slow, (x_t, x_s), (t_B, s_B), conditions)
        return {"lcm": pseudo_huber(x0, target, self.huber).mean()}

    def after_step(self, phase: Phase, step: int, networks: Networks) -> None:
        if self.lora_rank:  # the student is plain at all times: averages, checkpoints and journals need not know
            merge_into(networks["student"], networks["adapted"])
        Consistency.after_step(self, phase, step, networks)


def with_boundary(network: Parameterization) -> Parameterization:
    """`LCMBoundary` around predictions whose x0 at t = 0 is not the state itself."""
    unbounded = network.prediction in (Prediction.EPS, Prediction.X0) and network.preconditioning.kind == "none"
    return dataclasses.replace(network, preconditioning=LCMBoundary()) if unbounded else network
