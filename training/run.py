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
from distill_rt.core.directory import refuse_existing, resource_errors
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.models import load_student, save_student
from distill_rt.training.data import load_dataset
from distill_rt.training.methods import METHODS
from distill_rt.training.methods.base import Method
from distill_rt.training.predictor import Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.settings import apply_settings
from distill_rt.training.trainer import Progress, TrainConfig, Trainer


def train(
    recipe: str,
    out: Path,
    *,
    settings: Mapping[str, str] | None = None,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a teacher by a recipe and write it as a student directory.

    Args:
        recipe: key of `RECIPES`.
        out: the directory to write; the checkpoint lives beside it in ``<out>.checkpoint`` until training ends.
        settings: fields of the recipe's method as text.
        resume: go on from the checkpoint.
        force: replace what stands at `out` and start anew.
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
        progress=progress,
    )


def distill(
    method: str,
    teacher: Path,
    out: Path,
    *,
    steps: int = 4,
    settings: Mapping[str, str] | None = None,
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Distil a teacher directory into a student of `steps` steps; arguments as in `train`.

    Raises:
        UsageError: unknown method or setting, or a teacher that the method cannot use.
        ArtifactError: the teacher is damaged, or its data set is not known.
    """
    if method not in METHODS:
        raise UsageError(
            f"there is no method {method!r}", code="method-unknown", hint=f"methods: {', '.join(sorted(METHODS))}"
        )
    # steps decides what other settings mean (the halvings of progressive distillation), so all are applied at once.
    config = apply_settings(
        METHODS[method](), {"steps": str(steps), **_defaults_for(method, steps), **(settings or {})}
    )
    loaded = load_student(teacher)
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
    progress: Progress | None,
) -> dict[str, Any]:
    refuse_existing(out, force=force)
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if checkpoint.exists() and not resume:
        if not force:
            raise UsageError(
                f"there is an unfinished run at {checkpoint}",
                code="checkpoint-exists",
                hint="go on with --resume, or start anew with --force",
            )
        with resource_errors(checkpoint):
            shutil.rmtree(checkpoint)
    assert dataclasses.is_dataclass(method)
    assert not isinstance(method, type)
    identity = {
        "method": method.name,
        "settings": dataclasses.asdict(method),
        "data": data,
        "seed": seed,
        "teacher": teacher_digest,
        "contract": codec.to_json(method.contract(teacher.spec)),
    }
    dataset = load_dataset(data)
    started = time.monotonic()
    config = TrainConfig(method=method, seed=seed, checkpoint=checkpoint, identity=identity)
    trainer = Trainer(config, dataset, teacher)
    network, losses = trainer.run(resume=resume, progress=progress)
    spec = _with_provenance(method.contract(teacher.spec), identity, losses)
    digest = save_student(out, spec, [network], force=force)
    shutil.rmtree(checkpoint, ignore_errors=True)
    return {
        "path": str(out),
        "digest": digest,
        "method": method.name,
        "training_steps": trainer.num_steps,
        "final_loss": losses[-1][1],
        "seconds": round(time.monotonic() - started, 1),
        "steps": list(spec.steps),
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
    }


def _with_provenance(spec: StudentSpec, identity: Mapping[str, Any], losses: list[tuple[int, float]]) -> StudentSpec:
    """The contract with how it was made; nothing in it depends on when or where, so equal runs give equal digests."""
    versions = {name: importlib.metadata.version(name) for name in ("distill-rt", "torch", "diffusers")}
    made = {key: value for key, value in identity.items() if key != "contract"}
    curve = [[step, float(f"{loss:.6g}")] for step, loss in losses]
    return dataclasses.replace(spec, provenance={**made, "versions": versions, "losses": curve})
