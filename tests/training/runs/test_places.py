"""Outputs and checkpoints that stand already, cannot be written, or belong to another run."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
from short_runs import Stop, distill_case, only, refused, stop_at, tiny

from distill_rt.core.errors import ArtifactError, ResourceError, UsageError
from distill_rt.models import load_student
from distill_rt.training.journal import JournalOptions


def test_an_existing_output_needs_force(out):
    first = tiny(out)["digest"]
    with pytest.raises(UsageError) as caught:
        tiny(out, seed=1)
    refused(caught, "output-exists", "--force", out.parent, {"student"})
    assert load_student(out).digest == first
    assert tiny(out, seed=1, force=True)["digest"] != first
    assert only(out)


def test_force_spares_what_is_not_ours(out):
    out.mkdir()
    (out / "photo.jpg").write_text("mine")
    with pytest.raises(UsageError) as caught:
        tiny(out, force=True)
    refused(caught, "output-not-ours", "not ours", out.parent, {"student"})
    shutil.rmtree(out)
    checkpoint = out.with_name("student.checkpoint")
    checkpoint.mkdir()
    (checkpoint / "photo.jpg").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UsageError) as caught:
            tiny(out, force=True, resume=resume)
        refused(caught, "output-not-ours", "not ours", out.parent, {"student.checkpoint"})
    shutil.rmtree(checkpoint)
    checkpoint.symlink_to(out.parent)
    with pytest.raises(UsageError) as caught:
        tiny(out, force=True)
    refused(caught, "output-not-a-directory", "is a link", out.parent, {"student.checkpoint"})


@pytest.mark.parametrize(
    "place", ["student", "student/log", "student.checkpoint", "student.weights", "student.latents"]
)
def test_a_journal_where_the_run_keeps_something_else(out, place):
    with pytest.raises(UsageError) as caught:
        tiny(out, journal=JournalOptions(directory=out.parent / place))
    refused(caught, "places-overlap", "--journal", out.parent, set())


def test_an_unfinished_run_needs_resume_or_force(out):
    with pytest.raises(Stop):
        tiny(out, checkpoint_every=2, progress=stop_at(5))
    with pytest.raises(UsageError) as caught:
        tiny(out)
    refused(caught, "checkpoint-exists", "--resume", out.parent, {"student.checkpoint"})
    whole = tiny(out.with_name("whole"))["digest"]
    seen: list[int] = []
    assert tiny(out, force=True, progress=lambda name, done, *_: seen.append(done))["digest"] == whole
    assert seen[0] == 1
    assert not out.with_name("student.checkpoint").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed is 0 there and 1 now"),
        ({"settings": {"steps": "7"}}, "settings.steps is 6 there and 7 now"),
        ({"settings": {"peak_learning_rate": "0.5"}}, "settings.peak_learning_rate is 0.002 there and 0.5 now"),
    ],
)
def test_a_checkpoint_of_another_configuration(out, change, said):
    with pytest.raises(Stop):
        tiny(out, checkpoint_every=2, progress=stop_at(5))
    with pytest.raises(ArtifactError) as caught:
        tiny(out, resume=True, **change)
    refused(caught, "checkpoint-config", said, out.parent, {"student.checkpoint"})
    tiny(out, resume=True)
    assert only(out)


def test_a_checkpoint_of_another_teacher_or_method(teachers, out, tmp_path):
    with pytest.raises(Stop):
        distill_case("consistency", teachers["grid25"], out, checkpoint_every=2, progress=stop_at(5))
    with pytest.raises(ArtifactError, match="belongs to another configuration: contract"):
        distill_case("progressive", teachers["grid25"], out, resume=True)
    tiny(tmp_path / "other", seed=9)
    with pytest.raises(ArtifactError, match="belongs to another configuration: teacher"):
        distill_case("consistency", tmp_path / "other", out, resume=True)


def test_a_damaged_checkpoint(out):
    with pytest.raises(Stop):
        tiny(out, checkpoint_every=2, progress=stop_at(5))
    (out.with_name("student.checkpoint") / "checkpoint.json").write_text("{")
    with pytest.raises(ArtifactError) as caught:
        tiny(out, resume=True)
    refused(caught, "checkpoint-damaged", "--force", out.parent, {"student.checkpoint"})
    tiny(out, force=True)
    assert only(out)


def test_divergence_leaves_nothing(out):
    with pytest.raises(ResourceError) as caught:
        tiny(out, checkpoint_every=1, settings={"peak_learning_rate": "1e30", "warmup": "0"})
    refused(caught, "loss-not-finite", "lower the learning rate", out.parent, set())


def test_a_directory_that_cannot_be_written_is_found_before_training(out, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    seen: list[Any] = []
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResourceError) as caught:
        tiny(out, progress=lambda *arguments: seen.append(arguments))
    refused(caught, "not-writable", "read-only", out.parent, set())
    assert not seen
    monkeypatch.undo()
    (out.parent / "file").write_text("mine")
    with pytest.raises(ResourceError) as caught:
        tiny(out.parent / "file" / "student", progress=lambda *arguments: seen.append(arguments))
    refused(caught, "not-writable", "is a file", out.parent, {"file"})
    assert not seen


def test_a_disk_that_fills_up_at_the_end_keeps_the_checkpoint(out, monkeypatch):
    from distill_rt.models import student

    def refuse(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(student, "write_file", refuse)
    with pytest.raises(ResourceError) as caught:
        tiny(out, checkpoint_every=2)
    refused(caught, "disk-full", "free some space", out.parent, {"student.checkpoint"})
    monkeypatch.undo()
    assert tiny(out, resume=True)["digest"] == tiny(out.with_name("whole"))["digest"]
