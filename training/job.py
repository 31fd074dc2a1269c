"""What a run is asked for, its parts checked and loaded: places on the disk, and the settings of the loop."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from distill_rt.core.directory import refuse_existing
from distill_rt.core.errors import UsageError
from distill_rt.training.config import TrainConfig
from distill_rt.training.data.source import Source
from distill_rt.training.kept import MARK, KeptWeights, run_digest
from distill_rt.training.methods.base import Method
from distill_rt.training.options import RunOptions
from distill_rt.training.predictor import Teacher
from distill_rt.training.sides import Sides

CHECKPOINT_EVERY = 250


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """A run whose parts are checked and loaded.

    Args:
        teacher: an untaught one holds the contract of what is trained from data alone.
        out: the student directory to write.
        sides: text encoder and decoder.
        teacher_digest: of the teacher's directory; None where there is none.
    """

    method: Method
    teacher: Teacher
    source: Source
    out: Path
    sides: Sides
    teacher_digest: str | None
    options: RunOptions

    @property
    def latents_directory(self) -> Path:
        """Where encoded images are kept; beside `out` unless a place is given, which later runs use too."""
        return self.options.get("latents") or self.out.with_name(f"{self.out.name}.latents")

    @property
    def weights_directory(self) -> Path:
        """Where weights along the last phase are kept, if they are."""
        return self.out.with_name(f"{self.out.name}.weights")


def free_places(job: Job, *, force: bool, resume: bool) -> Path:
    """Refuse what would be overwritten, and places that would be in each other's way; the directory of the checkpoint."""
    out = job.out
    refuse_existing(out, force=force, ours="student.json")
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    own = (out, checkpoint, job.weights_directory)
    journal, latents = job.options.get("journal"), job.options.get("latents")
    chosen: list[tuple[str, Path | None, tuple[Path, ...]]] = [("--latents", latents, own)]
    if journal is not None:
        chosen.append(("--journal", journal.directory, (*own, job.latents_directory)))
    for option, place, taken in chosen:
        if place is not None and any(_is_within(place, directory) for directory in taken):
            raise UsageError(
                f"{option} {place} is where the run keeps something else",
                code="places-overlap",
                hint="choose another place",
            )
    refuse_existing(checkpoint, force=True, ours="checkpoint.json")
    if checkpoint.exists() and not resume and not force:
        raise UsageError(
            f"there is an unfinished run at {checkpoint}",
            code="checkpoint-exists",
            hint="go on with --resume, or start anew with --force",
        )
    return checkpoint


def _is_within(path: Path, directory: Path) -> bool:
    return Path(os.path.abspath(path)).is_relative_to(os.path.abspath(directory))


def config_of(
    job: Job, method: Method, identity: Mapping[str, Any], checkpoint: Path, device: torch.device
) -> TrainConfig:
    """What the loop is told; weights of a run before may not stand where this one keeps its own."""
    options, kept = job.options, None
    if keep_every := options.get("keep_every", 0):
        kept = KeptWeights(directory=job.weights_directory, run=run_digest(identity), every=keep_every)
        refuse_existing(kept.directory, force=True, ours=MARK)
    return TrainConfig(
        method=method,
        seed=options.get("seed", 0),
        checkpoint=checkpoint,
        checkpoint_every=options.get("checkpoint_every", CHECKPOINT_EVERY),
        identity=identity,
        accumulate=options.get("accumulate", 1),
        precision=options.get("precision", "fp32"),
        kept=kept,
        compile=options.get("compile", False),
        checkpoint_activations=options.get("checkpoint_activations", False),
        ema_power=options.get("ema_power"),
        parallel=options.get("parallel", "ddp"),
        device=device,
    )
