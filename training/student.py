"""How a student starts: its teacher's weights, new inputs at zero influence."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from distill_rt.core.spec import Guidance, NetworkSpec, StudentSpec
from distill_rt.core.table import StepTable
from distill_rt.models import build_network
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.predictor import Conditions, Teacher


def embed_guidance(teacher: StudentSpec) -> StudentSpec:
    """The contract with guidance as an input of the network where the teacher needs two evaluations; else unchanged."""
    if teacher.guidance.mode != "cfg":
        return teacher
    guidance = dataclasses.replace(teacher.guidance, mode="embedded", rescale=0.0)
    networks = tuple(NetworkSpec(kind=n.kind, config={**n.config, "guidance": True}) for n in teacher.networks)
    return dataclasses.replace(teacher, guidance=guidance, networks=networks)


def distilled_contract(
    teacher: StudentSpec, *, method: str, plans: dict[int, StepTable], default_steps: int, settings: dict[str, Any]
) -> StudentSpec:
    """The contract of a student with these plans; guidance becomes an input if it was two evaluations."""
    return dataclasses.replace(
        embed_guidance(teacher),
        name=f"{teacher.name.removesuffix('-teacher')}-{method}",
        plans=plans,
        default_steps=default_steps,
        provenance={"method": method, "settings": settings},
    )


def student_network(teacher: Teacher, spec: StudentSpec) -> nn.Module:
    """The student's network with the teacher's weights; inputs that the teacher lacks start at zero influence."""
    network = build_network(spec.networks[0])
    missing, unexpected = network.load_state_dict(teacher.network.state_dict(), strict=False)
    assert not unexpected, unexpected
    assert all(key.startswith(("guidance.", "second_time.")) for key in missing), missing
    return network


def draw_conditions(spec: StudentSpec, batch: Batch, draws: Draws) -> Conditions:
    """Labels of the batch and, where the contract is guided, w uniform over its range."""
    guidance: Guidance = spec.guidance
    if guidance.mode == "none":
        return Conditions(label_B=batch.label_B)
    w_B = guidance.min + (guidance.max - guidance.min) * draws.uniform(Purpose.GUIDANCE)
    return Conditions(label_B=batch.label_B, w_B=w_B)
