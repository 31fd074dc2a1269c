"""The two walks of training: a recipe to a teacher directory, a teacher to a student directory."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from distill_rt.core import codec
from distill_rt.core.directory import check_writable, refuse_existing, resource_errors
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.models import load_student, save_student
from distill_rt.training.data import load_dataset
from distill_rt.training.methods import METHODS
from distill_rt.training.methods.base import Method
from distill_rt.training.predictor import Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.settings import apply_settings
from distill_rt.training.smaller import network_cost
from distill_rt.training.trainer import Progress, TrainConfig, Trainer

CHECKPOINT_EVERY = 250
MAX_STEPS = 1024
"""More than any teacher has: a larger number of steps is a typing error, and its table would fill the memory."""


def train(
    recipe: str,
    out: Path,
    *,
    settings: Mapping[str, str] | None = None,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    checkpoint_every: int = CHECKPOINT_EVERY,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a teacher by a recipe and write it as a student directory.

    Args:
        recipe: key of `RECIPES`.
        out: the directory to write; the checkpoint lives beside it in ``<out>.checkpoint`` until training ends.
        settings: fields of the recipe's method as text.
        seed: of initial weights, data order and training noise, 0 to 2**64 - 1.
        resume: go on from the checkpoint if there is one.
        force: replace the student that stands at `out`, and start anew unless `resume`.
        checkpoint_every: training steps between two checkpoints.
        progress: called after every training step.

    Returns:
        A JSON object: path, digest, method, training_steps, final_loss, seconds, steps, num_parameters,
        flops_per_evaluation (of one image).

    Raises:
        UsageError: unknown recipe or setting, a setting out of range, `out` taken, or an unfinished run beside it.
        ArtifactError: the checkpoint is damaged or belongs to another configuration.
        ResourceError: training diverges (nothing is left), or the disk is full or not writable.
        KeyboardInterrupt: interrupted; the checkpoint holds the last complete step.
    """
    if recipe not in RECIPES:
        raise UsageError(
            f"there is no recipe {recipe!r}", code="recipe-unknown", hint=f"recipes: {', '.join(sorted(RECIPES))}"
        )
    chosen = RECIPES[recipe]()
    method = apply_settings(chosen.method, settings or {})
    # A teacher is trained from data: there is a contract, but no network to learn from.
    untaught = Teacher(chosen.spec, nn.Identity())
    return _run(
        method,
        untaught,
        chosen.dataset,
        out,
        seed=seed,
        teacher_digest=None,
        resume=resume,
        force=force,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )


def distill(
    method: str,
    teacher: Path,
    out: Path,
    *,
    steps: int | None = None,
    settings: Mapping[str, str] | None = None,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    checkpoint_every: int = CHECKPOINT_EVERY,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Distil a teacher directory into a student of `steps` steps; other arguments, result and errors as in `train`.

    Args:
        steps: None is the method's own default (4, or the plans of a teacher that only becomes smaller).

    Raises:
        UsageError: unknown method or setting, or a teacher that the method cannot use.
        ArtifactError: the teacher is damaged, or its data set is not known.
    """
    if method not in METHODS:
        raise UsageError(
            f"there is no method {method!r}", code="method-unknown", hint=f"methods: {', '.join(sorted(METHODS))}"
        )
    if steps is not None and not 1 <= steps <= MAX_STEPS:
        raise UsageError(f"steps must be 1 to {MAX_STEPS}, got {steps}", code="steps-out-of-range")
    if settings is not None and "steps" in settings:
        raise UsageError(
            "steps is not a setting of distillation", code="setting-unknown", hint="use the argument steps (--steps)"
        )
    # steps decides what other settings mean (the halvings of progressive distillation), so all are applied at once.
    chosen = {} if steps is None else {"steps": str(steps), **_defaults_for(method, steps)}
    config = apply_settings(METHODS[method](), {**chosen, **(settings or {})})
    loaded = load_student(teacher)
    if loaded.spec.guidance.rescale:
        raise UsageError(
            f"{teacher} rescales its guidance, which no method here distils",
            code="teacher-rescales",
            hint="set it to 0",
        )
    data = loaded.spec.provenance.get("data")
    if not isinstance(data, str):
        raise ArtifactError(
            f"{teacher} does not say which data it was trained on",
            code="teacher-without-data",
            hint="train it with distill-rt train",
        )
    taught = Teacher(loaded.spec, loaded.networks[0])
    return _run(
        config,
        taught,
        data,
        out,
        seed=seed,
        teacher_digest=loaded.digest,
        resume=resume,
        force=force,
        checkpoint_every=checkpoint_every,
        progress=progress,
    )


def _defaults_for(method: str, steps: int) -> dict[str, str]:
    defaults = METHODS[method]()
    return {"start_steps": str(8 * steps)} if hasattr(defaults, "start_steps") else {}


def _run(
    method: Method,
    teacher: Teacher,
    data: str,
    out: Path,
    *,
    seed: int,
    teacher_digest: str | None,
    resume: bool,
    force: bool,
    checkpoint_every: int,
    progress: Progress | None,
) -> dict[str, Any]:
    refuse_existing(out, force=force, ours="student.json")
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    refuse_existing(checkpoint, force=True, ours="checkpoint.json")
    if checkpoint.exists() and not resume and not force:
        raise UsageError(
            f"there is an unfinished run at {checkpoint}",
            code="checkpoint-exists",
            hint="go on with --resume, or start anew with --force",
        )
    check_writable(out)
    identity = {
        "method": method.name,
        "settings": _settings_of(method),
        "data": data,
        "seed": seed,
        "teacher": teacher_digest,
        "contract": codec.to_json(method.contract(teacher.spec)),
    }
    dataset = load_dataset(data)
    started = time.monotonic()
    config = TrainConfig(
        method=method, seed=seed, checkpoint=checkpoint, checkpoint_every=checkpoint_every, identity=identity
    )
    trainer = Trainer(config, dataset, teacher)
    if checkpoint.exists() and not resume:  # with force, and only now that nothing is left to refuse
        with resource_errors(checkpoint):
            shutil.rmtree(checkpoint)
    network, losses = trainer.run(resume=resume, progress=progress)
    spec = _with_provenance(method.contract(teacher.spec), identity, losses)
    digest = save_student(out, spec, [network], force=force)
    shutil.rmtree(checkpoint, ignore_errors=True)
    cost = network_cost(spec, network)
    return {
        "path": str(out),
        "digest": digest,
        "method": method.name,
        "training_steps": trainer.num_steps,
        "final_loss": losses[-1][1],
        "seconds": round(time.monotonic() - started, 1),
        "steps": list(spec.steps),
        "num_parameters": cost.parameters,
        "flops_per_evaluation": cost.flops,
    }


def _settings_of(method: Any) -> dict[str, Any]:
    return dataclasses.asdict(method)


def _with_provenance(spec: StudentSpec, identity: Mapping[str, Any], losses: list[tuple[int, float]]) -> StudentSpec:
    """The contract with how it was made; nothing in it depends on when or where, so equal runs give equal digests."""
    versions = {name: importlib.metadata.version(name) for name in ("distill-rt", "torch", "diffusers")}
    made = {key: value for key, value in identity.items() if key != "contract"}
    curve = [[step, float(f"{loss:.6g}")] for step, loss in losses]
    return dataclasses.replace(spec, provenance={**made, "versions": versions, "losses": curve})
