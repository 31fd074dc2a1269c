"""Runs of a few steps: the settings that make every method short, how to stop one, and what a refusal leaves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from distill_rt.training.methods import METHODS
from distill_rt.training.run import distill, train

TEACHERS = {"grid25": "40", "grid25-labelled": "40", "digits": "4"}
TEACHER_SETTINGS = {"batch_size": "16", "warmup": "5", "peak_learning_rate": "0.001"}
SETTINGS = {
    "progressive": {"guidance_iterations": "4", "stage_iterations": "4", "last_iterations": "5", "batch_size": "16"},
    "rcfd": {
        "classifier_iterations": "3",
        "guidance_iterations": "3",
        "stage_iterations": "3",
        "last_iterations": "4",
        "batch_size": "16",
    },
    "guidance": {"iterations": "8", "batch_size": "16"},
    "feature_kd": {"iterations": "9", "batch_size": "16", "width": "0.5", "blocks": "base"},
    "kd": {"iterations": "9", "batch_size": "16", "num_pairs": "40", "teacher_steps": "2"},
    "tract": {"guidance_iterations": "3", "first_iterations": "4", "iterations": "4", "batch_size": "16"},
    "dmd": {"iterations": "9", "batch_size": "16", "num_pairs": "40", "teacher_steps": "2"},
    "gits": {"intervals": "6", "batch_size": "16"},
    "bespoke": {"intervals": "6", "batch_size": "16"},
    "rectified_flow": {"iterations": "5", "times": "2", "batch_size": "16", "num_pairs": "40", "ode_steps": "2"},
}
BRIEF = {"iterations": "9", "batch_size": "16"}
"""Settings of the methods that are not named above."""
STEPS = {"feature_kd": 4, "bk_sdm": 4, "kd": 1, "boot": 1, "dmd": 1, "vsd": 1, "sid": 1}
"""Of the student, 2 otherwise: a smaller network keeps one of its teacher's plans, a generator has one step."""
UNGUIDED = ("consistency_training", "ect", "imm", "dice")
"""Their students offer no guidance: they learn from data alone, or one scale is baked in."""
NEED_GUIDANCE = ("guidance", "dice")
"""They distil nothing else."""
UNTRAINED = ("bespoke", "gits")
"""They search."""
GUIDED_AS_TEACHER = ("bespoke", "bk_sdm", "feature_kd", "gits")
"""A smaller network and a teacher with another table."""
CASES = [
    ("progressive", "grid25"),
    ("progressive", "grid25-labelled"),
    ("progressive", "digits"),
    ("consistency", "grid25"),
    ("consistency", "grid25-labelled"),
    ("guidance", "grid25-labelled"),
    *((method, "grid25") for method in sorted(set(METHODS) - {"progressive", "consistency", "rcfd", *NEED_GUIDANCE})),
    *((method, "grid25-labelled") for method in sorted(set(METHODS) - {"progressive", "consistency", "guidance"})),
    ("feature_kd", "digits"),
]


def distill_case(method: str, teacher: Path, out: Path, **arguments: Any) -> dict[str, Any]:
    settings = {**SETTINGS.get(method, BRIEF), **arguments.pop("settings", {})}
    return distill(method, teacher, out, steps=STEPS.get(method, 2), settings=settings, **arguments)


class Stop(BaseException):
    """The end of a process, as far as the trainer can tell."""


def stop_at(step: int):
    def progress(phase, done, total, loss):
        if done == step:
            raise Stop

    return progress


def only(out: Path) -> bool:
    return list(out.parent.iterdir()) == [out]


def tiny(out: Path, **arguments: Any) -> dict[str, Any]:
    settings = {"steps": "6", "batch_size": "8", **arguments.pop("settings", {})}
    return train("grid25-teacher", out, settings=settings, **arguments)


def refused(error: pytest.ExceptionInfo[Any], code: str, said: str, place: Path, left: set[str]) -> None:
    assert error.value.code == code
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert {path.name for path in place.iterdir()} == left
