"""How a student starts: its teacher's weights, new inputs at zero influence."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import nn

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import Guidance, NetworkSpec, StudentSpec
from distill_rt.core.table import StepTable
from distill_rt.models import build_network
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.predictor import Conditions, Teacher

TEXT_KEY, TEXT_GUIDANCE_WIDTH = "time_cond_proj_dim", 64
"""Setting of networks that read text, and sinusoidal features of w (Luo et al. 2023, arXiv 2310.04378, take 256)."""
TEXT_GUIDANCE = "backbone.time_embedding.cond_proj."
"""The layer's weights."""


def embed_guidance(teacher: StudentSpec) -> StudentSpec:
    """The contract with guidance as an input of the network where the teacher needs two evaluations; else unchanged."""
    if teacher.guidance.mode != "cfg":
        return teacher
    guidance = dataclasses.replace(teacher.guidance, mode="embedded", rescale=0.0)
    # Networks that read text take w as latent consistency models do, through diffusers' own layer.
    added = {"guidance": True} | ({TEXT_KEY: TEXT_GUIDANCE_WIDTH} if teacher.condition.kind == "text" else {})
    networks = tuple(NetworkSpec(kind=n.kind, config={**n.config, **added}) for n in teacher.networks)
    return dataclasses.replace(teacher, guidance=guidance, networks=networks)


def drop_guidance(teacher: StudentSpec) -> StudentSpec:
    """The contract without guidance: what a student has that learns from data alone."""
    networks = tuple(
        NetworkSpec(kind=n.kind, config={k: v for k, v in n.config.items() if k not in ("guidance", TEXT_KEY)})
        for n in teacher.networks
    )
    return dataclasses.replace(teacher, guidance=Guidance(), networks=networks)


def embed_second_time(spec: StudentSpec) -> StudentSpec:
    """The contract with the target time as an input of the network.

    Raises:
        UsageError: a network that cannot take one.
    """
    if spec.condition.kind == "text":
        raise UsageError(
            f"{spec.name!r} reads text, and networks that do take no second time",
            code="no-second-time",
            hint="use a method whose student knows one time (docs/methods.md says which)",
        )
    scale = abs(float(spec.process.model_time(1.0)) - float(spec.process.model_time(0.0)))
    networks = tuple(NetworkSpec(kind=n.kind, config={**n.config, "second_time": scale}) for n in spec.networks)
    return dataclasses.replace(spec, networks=networks)


def distilled_contract(
    teacher: StudentSpec,
    *,
    method: str,
    plans: dict[int, StepTable],
    default_steps: int,
    settings: dict[str, Any],
    guided: bool = True,
) -> StudentSpec:
    """The contract of a student with these plans.

    Args:
        guided: guidance becomes an input if it was two evaluations; False drops guidance. A plan that names a second time
            makes it an input too.

    Raises:
        UsageError: a teacher that knows two times already, or a network that cannot learn to where the plans need it.
    """
    if teacher.uses_second_time:
        raise UsageError(
            f"{teacher.name!r} jumps between two times, and methods learn from models that know one",
            code="teacher-two-times",
            hint="distil its own teacher instead",
        )
    spec = embed_guidance(teacher) if guided else drop_guidance(teacher)
    if any(table.uses_second_time for table in plans.values()):
        spec = embed_second_time(spec)
    return dataclasses.replace(
        spec,
        name=f"{teacher.name.removesuffix('-teacher')}-{method}",
        plans=plans,
        default_steps=default_steps,
        provenance={"method": method, "settings": settings},
    )


def student_network(teacher: Teacher, spec: StudentSpec) -> nn.Module:
    """The student's network with the teacher's weights; inputs that the teacher lacks start at zero influence."""
    network = build_network(spec.networks[0])
    missing, unexpected = network.load_state_dict(teacher.network.state_dict(), strict=False)
    if spec.guidance.mode == "none":  # a student of data alone leaves its teacher's guidance input behind
        unexpected = [key for key in unexpected if not key.startswith(("guidance.", TEXT_GUIDANCE))]
    assert not unexpected, unexpected
    assert all(key.startswith(("guidance.", "second_time.", TEXT_GUIDANCE)) for key in missing), missing
    for key in missing:
        if key.startswith(TEXT_GUIDANCE):  # ours end in a layer of zeros; diffusers' is drawn
            nn.init.zeros_(network.get_parameter(key))
    return network


def draw_conditions(spec: StudentSpec, batch: Batch, draws: Draws) -> Conditions:
    """Labels or prompts of the batch and, where the contract is guided, w uniform over its range."""
    guidance: Guidance = spec.guidance
    if guidance.mode == "none":
        return Conditions(label_B=batch.label_B, text_BLD=batch.text_BLD)
    w_B = guidance.min + (guidance.max - guidance.min) * draws.uniform(Purpose.GUIDANCE)
    return Conditions(label_B=batch.label_B, text_BLD=batch.text_BLD, w_B=w_B)
