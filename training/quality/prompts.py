"""What an evaluation asks for: the prompts that are given, or the captions of scenes that training never draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill_rt.core.errors import UsageError
from distill_rt.models import Student
from distill_rt.training.data import Dataset, Shapes, load_dataset
from distill_rt.training.data.shapes import Scene, unseen_scenes
from distill_rt.training.data.source import recorded_source


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Prompts that are given in turn.

    Args:
        prompts: () for a teacher that reads none.
        scenes: what they say, one for each, where they are captions of shapes; () where nobody knows.
    """

    prompts: tuple[str, ...] = ()
    scenes: tuple[Scene, ...] = ()


def recorded_data(teacher: Student) -> Dataset | None:
    """What a teacher was trained on; None for images of one's own, for latents, and where it does not say (one that was
    imported): such teachers are the only yardstick."""
    data = teacher.spec.provenance.get("data")
    recorded = recorded_source(data) if isinstance(data, str) and teacher.spec.decoder is None else None
    return None if recorded is None else load_dataset(recorded)


def asked_prompts(teacher: Student, prompts: Sequence[str] | None, num_samples: int) -> Asked:
    """Those of an evaluation.

    Args:
        prompts: None are captions of unseen scenes, for a teacher of shapes.

    Raises:
        UsageError: prompts for a teacher that reads none, none at all, or an empty one.
    """
    if teacher.spec.condition.kind != "text":
        if prompts is not None:
            raise UsageError(
                f"{teacher.path} reads no prompts", code="prompts-not-needed", hint="leave the prompts out (--prompts)"
            )
        return Asked()
    if prompts is None and isinstance(recorded_data(teacher), Shapes):
        scenes = unseen_scenes(num_samples)
        return Asked(prompts=tuple(scene.caption for scene in scenes), scenes=tuple(scenes))
    if prompts is None:
        raise UsageError(
            f"{teacher.path} reads prompts, and captions of what it was trained on are not known here",
            code="prompts-missing",
            hint="give some, one in a line: --prompts FILE",
        )
    if not prompts or not all(prompt.strip() for prompt in prompts):
        raise UsageError("an evaluation needs one or more prompts, none of them empty", code="prompts-empty")
    return Asked(prompts=tuple(prompts))
