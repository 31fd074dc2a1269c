"""A folder of images from teacher to student: labels, resuming bit for bit, notes on bad images, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.models import load_student
from distill_rt.training.evaluate import evaluate
from distill_rt.training.run import distill, train

SETTINGS = {"steps": "6", "batch_size": "8", "warmup": "2", "peak_learning_rate": "0.001"}


class Stop(BaseException):
    """The end of a process, as far as the trainer can tell."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three classes of noise around a level."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(["ant", "bee", "cat"]):
        folder = tmp_path / "images" / name
        folder.mkdir(parents=True)
        for i in range(5):
            noise = rng.integers(80 * label, 80 * label + 80, (12, 16, 3), np.uint8)
            Image.fromarray(noise).save(folder / f"{i}.png")
    return tmp_path / "images"


def teach(images: Path, out: Path, **options: Any) -> dict[str, Any]:
    return train("digits-teacher", out, data=str(images), settings=SETTINGS, **options)


def test_from_a_folder_to_a_student(images, tmp_path):
    made = teach(images, tmp_path / "teacher")
    assert made["notes"] == []
    teacher = load_student(tmp_path / "teacher")
    assert teacher.spec.condition.num_classes == 3
    assert teacher.spec.condition.null_label == 3
    assert teacher.spec.provenance["classes"] == ["ant", "bee", "cat"]
    assert str(tmp_path) not in json.dumps(teacher.spec.provenance)
    settings = {"iterations": "3", "batch_size": "8"}
    with pytest.raises(UsageError, match="images of your own") as caught:
        distill("consistency", tmp_path / "teacher", tmp_path / "student", steps=2, settings=settings)
    assert caught.value.code == "data-not-given"
    made = distill(
        "consistency", tmp_path / "teacher", tmp_path / "student", steps=2, data=str(images), settings=settings
    )
    assert load_student(tmp_path / "student").spec.provenance["classes"] == ["ant", "bee", "cat"]
    # The teacher is the yardstick; its data are not needed.
    report = evaluate(tmp_path / "student", tmp_path / "teacher", nfe=[2], num_samples=200)
    assert report["rows"][0]["label_accuracy"] is None
    (images / "cat").rename(images / "dog")
    with pytest.raises(UsageError, match="'dog' stands where it learned 'cat'"):
        distill("consistency", tmp_path / "teacher", tmp_path / "other", data=str(images), settings=settings)


def test_a_run_that_stops_anywhere_ends_with_the_same_digest(images, tmp_path):
    """With a file that cannot be read among those that are drawn."""
    (images / "bee" / "2.png").write_bytes(b"\x89PNG")
    whole = teach(images, tmp_path / "whole")
    assert len(whole["notes"]) == 1
    assert "1 of 15 images" in whole["notes"][0]
    for step in (1, 3, 5):

        def stop(phase, done, total, loss, step=step):
            if done == step:
                raise Stop

        with pytest.raises(Stop):
            teach(images, tmp_path / f"{step}", checkpoint_every=1, progress=stop)
        made = teach(images, tmp_path / f"{step}", checkpoint_every=2, resume=True)
        assert made["digest"] == whole["digest"], f"stopped at {step}"


def test_a_checkpoint_of_other_images(images, tmp_path):
    def stop(phase, done, total, loss):
        if done == 3:
            raise Stop

    with pytest.raises(Stop):
        teach(images, tmp_path / "teacher", checkpoint_every=1, progress=stop)
    (images / "bee" / "2.png").unlink()
    with pytest.raises(ArtifactError, match="belongs to another configuration: data is 'folder:"):
        teach(images, tmp_path / "teacher", resume=True)


def test_nothing_is_written_where_the_data_are_refused(images, tmp_path):
    Image.new("L", (8, 8)).save(images / "loose.png")
    with pytest.raises(UsageError, match="in no sub-folder"):
        teach(images, tmp_path / "teacher")
    for file in images.rglob("*.png"):
        file.write_bytes(b"")
    (images / "loose.png").unlink()
    with pytest.raises(ArtifactError, match="none of the 15 images"):
        teach(images, tmp_path / "teacher")
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_dry_run_says_everything_and_writes_nothing(images, tmp_path):
    out = tmp_path / "teacher"
    planned = teach(images, out, dry_run=True, seed=7, checkpoint_every=5)
    json.dumps(planned, allow_nan=False)
    assert [path.name for path in tmp_path.iterdir()] == ["images"]
    assert planned["seed"] == 7
    assert planned["checkpoint_every"] == 5
    assert planned["training_steps"] == 6
    assert planned["phases"] == [{"name": "denoising", "network": "student", "start": 0, "iterations": 6, "target": 0}]
    assert planned["contract"]["condition"]["num_classes"] == 3
    teach(images, out, seed=7)
    provenance = load_student(out).spec.provenance
    for key in ("method", "settings", "data", "seed", "teacher", "classes"):
        assert planned[key] == provenance[key], key
    with pytest.raises(UsageError, match="exists already"):
        teach(images, out, dry_run=True)
    for settings, said in (
        ({"nonsense": "1"}, "no setting"),
        ({"batch_size": "0"}, "batch_size"),
        ({"steps": "0"}, "no step"),
    ):
        with pytest.raises(UsageError, match=said):
            train("digits-teacher", tmp_path / "other", settings=settings, dry_run=True)
