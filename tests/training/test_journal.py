"""The journal: every step once however often a run is killed, sheets of samples, and a run that it does not change."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from short_runs import Stop, stop_at

from distill_rt.core.errors import ResourceError, TargetError, UsageError
from distill_rt.core.optional import installed
from distill_rt.training.journal import JournalOptions
from distill_rt.training.run import distill, train

DIGITS = {"steps": "6", "batch_size": "8", "warmup": "2"}
GRID = {"steps": "20", "batch_size": "8"}


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def run(out: Path, log: Path, *, every: int = 2, **options: Any) -> dict[str, Any]:
    return train("grid25-teacher", out, settings=GRID, journal=JournalOptions(directory=log, every=every), **options)


def test_figures_of_a_run(tmp_path):
    seen = []
    made = run(tmp_path / "teacher", tmp_path / "log", progress=lambda name, done, total, loss: seen.append(loss))
    rows = lines(tmp_path / "log")
    assert [row["step"] for row in rows] == list(range(2, 21, 2))
    assert [row["running_loss"] for row in rows] == [seen[row["step"] - 1] for row in rows]
    assert rows[-1]["running_loss"] == pytest.approx(made["final_loss"], rel=0.2)
    for row in rows:
        assert row["phase"] == "denoising"
        assert row["loss"] == pytest.approx(row["loss/denoising"])
        assert row["gradient_norm"] > 0
        assert row["seconds_per_step"] > 0
    assert rows[0]["learning_rate"] < rows[2]["learning_rate"], "warm-up"
    configuration = json.loads((tmp_path / "log" / "config.json").read_text())
    assert configuration["settings"]["steps"] == 20
    assert {path.name for path in (tmp_path / "log").iterdir()} == {"metrics.jsonl", "config.json"}


def test_a_journal_changes_nothing(tmp_path):
    plain = train("digits-teacher", tmp_path / "plain", settings=DIGITS)["digest"]
    options = JournalOptions(directory=tmp_path / "log", every=1, sample_every=2)
    assert train("digits-teacher", tmp_path / "logged", settings=DIGITS, journal=options)["digest"] == plain


@pytest.mark.parametrize("step", [1, 5, 12, 19])
def test_every_step_once_however_often_the_run_is_killed(tmp_path, step):
    run(tmp_path / "whole", tmp_path / "expected", every=1)
    with pytest.raises(Stop):
        run(tmp_path / "t", tmp_path / "log", every=1, checkpoint_every=4, progress=stop_at(step))
    with open(tmp_path / "log" / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "phase')  # torn by the kill
    with pytest.raises(UsageError, match="holds the journal of another run") as caught:
        run(tmp_path / "other", tmp_path / "log")
    assert "--resume" in caught.value.hint
    run(tmp_path / "t", tmp_path / "log", every=1, resume=True)
    timeless = [
        [{key: value for key, value in row.items() if key != "seconds_per_step"} for row in lines(tmp_path / name)]
        for name in ("log", "expected")
    ]
    assert timeless[0] == timeless[1]


def test_force_begins_a_new_journal(tmp_path):
    run(tmp_path / "t", tmp_path / "log")
    run(tmp_path / "t", tmp_path / "log", every=5, force=True)
    assert [row["step"] for row in lines(tmp_path / "log")] == [5, 10, 15, 20]


def test_a_new_journal_has_its_own_sheets(tmp_path):
    options = JournalOptions(directory=tmp_path / "log", sample_every=2)
    train("digits-teacher", tmp_path / "t", settings=DIGITS, journal=options)
    train("digits-teacher", tmp_path / "t", settings={**DIGITS, "steps": "2"}, journal=options, force=True)
    assert [path.name for path in (tmp_path / "log" / "samples").iterdir()] == ["step-0000002.png"]


def test_sheets_of_samples(tmp_path):
    options = JournalOptions(directory=tmp_path / "log", sample_every=3)
    train("digits-teacher", tmp_path / "teacher", settings=DIGITS, journal=options)
    sheets = sorted((tmp_path / "log" / "samples").iterdir())
    assert [path.name for path in sheets] == ["step-0000003.png", "step-0000006.png"]
    first, second = (np.asarray(Image.open(path)) for path in sheets)
    assert first.shape == (4 * 64, 4 * 64), "sixteen digits of 8x8 pixels, enlarged eight times"
    np.testing.assert_array_equal(first[::8, ::8].repeat(8, 0).repeat(8, 1), first)
    assert len(np.unique(first)) > 20
    assert (first != second).any(), "the same noise, a network that has learned"
    options = JournalOptions(directory=tmp_path / "second", sample_every=3)
    distill(
        "consistency",
        tmp_path / "teacher",
        tmp_path / "student",
        settings={"iterations": "3", "batch_size": "4"},
        journal=options,
    )
    assert Image.open(tmp_path / "second" / "samples" / "step-0000003.png").mode == "L"


def test_points_are_no_images(tmp_path):
    options = JournalOptions(directory=tmp_path / "log", sample_every=3)
    for dry_run in (True, False):
        with pytest.raises(UsageError, match="are no images"):
            train("grid25-teacher", tmp_path / "t", settings=GRID, journal=options, dry_run=dry_run)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"every": 0}, {"every": -1}, {"sample_every": -1}])
def test_intervals_that_are_none(tmp_path, options):
    with pytest.raises(UsageError, match="a journal needs"):
        JournalOptions(directory=tmp_path, **options)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResourceError, match="cannot write"):
        run(tmp_path / "t", tmp_path / "file" / "log")
    assert {path.name for path in tmp_path.iterdir()} == {"file"}


@pytest.mark.skipif(not installed("tensorboard"), reason="needs tensorboard")
def test_tensorboard_gets_the_same_figures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = JournalOptions(directory=tmp_path / "log", every=2, sample_every=3, tensorboard=True)
    with pytest.raises(Stop):
        train(
            "digits-teacher",
            tmp_path / "t",
            settings=DIGITS,
            journal=options,
            checkpoint_every=3,
            progress=stop_at(5),
        )
    train("digits-teacher", tmp_path / "t", settings=DIGITS, journal=options, resume=True)
    events = EventAccumulator(str(tmp_path / "log"))
    events.Reload()
    rows = lines(tmp_path / "log")
    for name in ("loss", "running_loss", "learning_rate", "gradient_norm", "loss/denoising"):
        scalars = events.Scalars(name)
        assert [scalar.step for scalar in scalars] == [2, 4, 6], "what was run again is shown once"
        assert [scalar.value for scalar in scalars] == pytest.approx([row[name] for row in rows], rel=1e-5)
    assert [image.step for image in events.Images("samples")] == [3, 6]


def test_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    options = JournalOptions(directory=tmp_path / "log", tensorboard=True)
    with pytest.raises(TargetError) as caught:
        train("grid25-teacher", tmp_path / "t", settings=GRID, journal=options)
    assert "distill-rt[tensorboard]" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
