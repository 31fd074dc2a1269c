"""The two walks of training: a recipe to a teacher directory, a teacher to a student directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Unpack

from torch import nn

from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.models import Student, load_student
from distill_rt.models.autoencoder import load_autoencoder
from distill_rt.training.data.source import check_classes, open_source, recorded_source
from distill_rt.training.execute import execute
from distill_rt.training.job import Job
from distill_rt.training.latents import LatentSide
from distill_rt.training.methods import METHODS
from distill_rt.training.options import RunOptions
from distill_rt.training.plans import MAX_STEPS
from distill_rt.training.predictor import Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.settings import apply_settings
from distill_rt.training.sides import Sides
from distill_rt.training.text import fresh_text


def train(
    recipe: str,
    out: Path,
    *,
    data: str | None = None,
    settings: Mapping[str, str] | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Train a teacher by a recipe and write it as a student directory.

    Args:
        recipe: key of `RECIPES`.
        out: the directory to write; the checkpoint lives beside it in ``<out>.checkpoint`` until training ends.
        data: what to train on instead of the recipe's data set (`open_source`); the contract gets its number of classes.
        settings: fields of the recipe's method as text.
        options: see `RunOptions`; with an autoencoder the recipe's network learns its latents (`Recipe.for_latents`).

    Returns:
        A JSON object: path, digest, method, training_steps, final_loss (null where nothing is trained), seconds, steps,
        num_parameters, flops_per_evaluation (of one image), notes (on the data); of a dry run the configuration. Of
        several processes (torchrun), those that are not the first hand back an empty one.

    Raises:
        UsageError: unknown recipe, setting or data, a setting out of range, `out` taken, or an unfinished run beside it.
        ArtifactError: the checkpoint or the data is damaged, or the checkpoint belongs to another configuration.
        ResourceError: training diverges (nothing is left), or the disk is full or not writable.
        KeyboardInterrupt: interrupted; the checkpoint holds the last complete step.
    """
    if recipe not in RECIPES:
        raise UsageError(
            f"there is no recipe {recipe!r}", code="recipe-unknown", hint=f"recipes: {', '.join(sorted(RECIPES))}"
        )
    chosen, latents = RECIPES[recipe](), None
    method = apply_settings(chosen.method, settings or {})
    if (path := options.get("autoencoder")) is not None:
        autoencoder = load_autoencoder(path)
        chosen, latents = chosen.for_latents(autoencoder), LatentSide(autoencoder, autoencoder.decoder)
    source = open_source(chosen.dataset if data is None else data, chosen.spec)
    # A teacher is trained from data: there is a contract, but no network to learn from.
    spec = chosen.for_classes(source.dataset.num_classes).spec
    with fresh_text(spec, chosen.words, seed=options.get("seed", 0)) as text:
        sides = Sides(text=text, latents=latents)
        untaught = Teacher(spec, nn.Identity(), sides.null_text_LD)
        return execute(
            Job(
                method=method,
                teacher=untaught,
                source=source,
                out=out,
                sides=sides,
                teacher_digest=None,
                options=options,
            )
        )


def distill(
    method: str,
    teacher: Path,
    out: Path,
    *,
    steps: int | None = None,
    data: str | None = None,
    settings: Mapping[str, str] | None = None,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Distil a teacher directory into a student of `steps` steps; other arguments, result and errors as in `train`.

    Args:
        steps: None is the method's own default (4, or the plans of a teacher that only becomes smaller).
        data: None is the data set that the teacher was trained on.

    Raises:
        UsageError: unknown method or setting, a teacher that the method cannot use, or data that do not fit it.
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
    _check_teacher(loaded, method)
    sides = Sides.of(loaded, options.get("autoencoder"))
    source = open_source(_data_of(loaded) if data is None else data, loaded.spec)
    check_classes(source, loaded.spec, loaded.spec.provenance.get("classes"))
    taught = Teacher(loaded.spec, loaded.networks[0], sides.null_text_LD)
    return execute(
        Job(
            method=config,
            teacher=taught,
            source=source,
            out=out,
            sides=sides,
            teacher_digest=loaded.digest,
            options=options,
        )
    )


DENOISERS = {"denoising", "guidance", "dice", "bk_sdm", "gits", "bespoke", "rectified_flow"}
"""Methods whose networks answer at every time what a solver steps with. Those of `feature_kd` are as their teacher was."""


def _check_teacher(teacher: Student, method: str) -> None:
    """Refuse what no method here distils, and what has learned another thing than the method would ask."""
    spec = teacher.spec
    made_by = spec.provenance.get("method")
    if method != "feature_kd" and made_by in METHODS.keys() - DENOISERS - {"feature_kd"}:
        raise UsageError(
            f"{teacher.path} was made by {made_by} and knows the steps of its plans, not those that {method} would take",
            code="teacher-not-denoising",
            hint="give the teacher that it was distilled from (feature_kd makes a student smaller)",
        )
    if spec.guidance.rescale:
        raise UsageError(
            f"{teacher.path} rescales its guidance, which no method here distils",
            code="teacher-rescales",
            hint="set it to 0",
        )


def _data_of(teacher: Student) -> str:
    """The data that a teacher was trained on, as `open_source` takes it."""
    identity = teacher.spec.provenance.get("data")
    recorded = recorded_source(identity) if isinstance(identity, str) else None
    if recorded is not None:
        return recorded
    if identity is None or not isinstance(identity, str):
        raise ArtifactError(
            f"{teacher.path} does not say which data it was trained on",
            code="teacher-without-data",
            hint="say which: --data DIR, hf:NAME or a data set by name",
        )
    raise UsageError(
        f"{teacher.path} was trained on images of your own ({identity:.40}), and where they are is not recorded",
        code="data-not-given",
        hint="say it again: --data DIR or --data hf:NAME",
    )


def _defaults_for(method: str, steps: int) -> dict[str, str]:
    defaults = METHODS[method]()
    return {"start_steps": str(8 * steps)} if hasattr(defaults, "start_steps") else {}
