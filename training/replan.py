"""Other plans for a trained student: which times its evaluations have, without training it again.

A consistency student knows every time, so the times of its plans are a choice after training, and matter as much as the
training does (docs/log.md).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from distill_rt.core.directory import check_writable, refuse_existing
from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.models import load_student, save_student
from distill_rt.training.methods import METHODS
from distill_rt.training.plans import MAX_STEPS


def replan(
    student: Path, out: Path, *, power: float | None = None, steps: int | None = None, force: bool = False
) -> dict[str, Any]:
    """Write the student with the plans that its method would have given it under other settings.

    Args:
        student: directory.
        power: fresh noise is added at the times ``(1 - i / n)^power`` (`renoise_plans`); None keeps it.
        steps: evaluations of the largest plan, which becomes the default; None keeps it.

    Returns:
        A JSON object: path, digest, and the times of every plan.

    Raises:
        UsageError: a student that knows the times of its plans only, a setting out of range, or nothing to change.
    """
    if power is None and steps is None:
        raise UsageError("nothing to change: give other times or another number of steps", code="setting-invalid")
    refuse_existing(out, force=force, ours="student.json")
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"steps must be 1 to {MAX_STEPS}, got {steps}", code="steps-out-of-range")
    loaded = load_student(student)
    spec = replanned(loaded.spec, power=power, steps=steps)
    check_writable(out)
    digest = save_student(
        out,
        spec,
        loaded.networks,
        text_encoder=loaded.text_encoder,
        decoder=loaded.decoder,
        tokenizer=loaded.tokenizer,
        force=force,
    )
    return {"path": str(out), "digest": digest, "plans": {str(n): plan_times(spec, n) for n in spec.steps}}


def replanned(spec: StudentSpec, *, power: float | None, steps: int | None) -> StudentSpec:
    """The contract with other plans; arguments and errors as of `replan`."""
    name, recorded = str(spec.provenance.get("method")), spec.provenance.get("settings")
    kind: Any = METHODS.get(name)
    if not hasattr(kind, "plan_power") or not isinstance(recorded, dict):
        able = ", ".join(sorted(name for name, method in METHODS.items() if hasattr(method, "plan_power")))
        raise UsageError(
            f"{spec.name!r} was made by {name!r}, and knows no times but those of its plans",
            code="plan-fixed",
            hint=f"students of {able} know every time; distil others again",
        )
    known = {field.name for field in dataclasses.fields(kind)}
    # Students from before there was a choice have uniform times.
    settings = {"plan_power": 1.0} | {key: value for key, value in recorded.items() if key in known}
    changes = {"plan_power": power, "steps": steps}
    method = kind(**settings | {key: value for key, value in changes.items() if value is not None})
    made = method.contract(spec)
    provenance = {**spec.provenance, "settings": dataclasses.asdict(method)}
    return dataclasses.replace(spec, plans=made.plans, default_steps=made.default_steps, provenance=provenance)


def plan_times(spec: StudentSpec, steps: int) -> list[float]:
    """Process times of a plan's evaluations, 1 is noise."""
    return [round(float(spec.process.t_from_model_time(row.time)), 4) for row in spec.plans[steps].rows]
