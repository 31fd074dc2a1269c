"""Several processes, as torchrun starts them: the weights of one process, in parts or in one piece, killed or not."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from several_processes import assert_same, start, together, weights

from distill_rt.core.errors import UsageError
from distill_rt.models import load_student
from distill_rt.training.run import distill, train

TEACHER = {"steps": "12", "batch_size": "16", "warmup": "2"}
DISTILLED: dict[str, dict[str, str]] = {
    # At ten times this rate Adam enlarges the rounding of processors with AVX-512 to 1.8e-6 of the weights in nine steps.
    "progressive": {
        "guidance_iterations": "3",
        "stage_iterations": "3",
        "last_iterations": "3",
        "batch_size": "16",
        "peak_learning_rate": "1e-4",
    },
    "consistency": {"iterations": "6", "batch_size": "16"},
    "guidance": {"iterations": "6", "batch_size": "16"},
    "kd": {"iterations": "6", "batch_size": "16", "num_pairs": "40"},
}
STEPS = {"kd": 1, "feature_kd": 4}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("parallel") / "teacher"
    train("grid25-labelled-teacher", out, settings=TEACHER)
    return out


def test_two_processes_equal_one(teacher, tmp_path):
    """Also where pairs are made by all processes and drawn by each, and where phases change."""
    jobs: list[dict[str, Any]] = [{"recipe": "grid25-labelled-teacher", "out": tmp_path / "two", "settings": TEACHER}]
    for method, settings in DISTILLED.items():
        job = {"method": method, "teacher": teacher, "steps": STEPS.get(method, 2), "settings": settings}
        distill(**job, out=tmp_path / f"{method}-one")
        jobs.append({**job, "out": tmp_path / f"{method}-two"})
    assert together(2, *jobs) == [0, 0]
    assert_same(tmp_path / "two", teacher)
    for method in DISTILLED:
        assert_same(tmp_path / f"{method}-two", tmp_path / f"{method}-one")


def test_a_killed_process_changes_nothing(teacher, tmp_path):
    """The second process dies in the middle; all are started again and end with the weights of an undisturbed run."""
    job = {"recipe": "grid25-labelled-teacher", "settings": TEACHER, "checkpoint_every": 4}
    assert together(2, {**job, "out": tmp_path / "whole"}) == [0, 0]
    # Only the main process reports progress, so it is the one that dies here; the other one is ended.
    codes = together(2, {**job, "out": tmp_path / "killed", "die_at": 7})
    assert codes[0] == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    assert (tmp_path / "killed.checkpoint").exists()
    assert together(2, {**job, "out": tmp_path / "killed", "resume": True}) == [0, 0]
    assert load_student(tmp_path / "killed").digest == load_student(tmp_path / "whole").digest
    # Going on with another number of processes gives the same run up to rounding.
    assert together(2, {**job, "out": tmp_path / "one", "die_at": 7})[0] == -signal.SIGKILL
    train(**job, out=tmp_path / "one", resume=True)  # type: ignore[arg-type]
    assert_same(tmp_path / "one", tmp_path / "whole")


def test_a_signal_to_one_process_stops_all(tmp_path):
    job = {
        "recipe": "grid25-labelled-teacher",
        "settings": TEACHER | {"steps": "100000"},
        "out": tmp_path / "long",
        "checkpoint_every": 5,
    }
    processes = start(2, job)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "long.checkpoint").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=60) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [-signal.SIGTERM] * 2, outputs
    assert [path.name for path in tmp_path.iterdir()] == ["long.checkpoint"]


@pytest.mark.parametrize("parts", [2, 4])
def test_a_batch_in_parts_is_the_batch(teacher, tmp_path, parts):
    train("grid25-labelled-teacher", tmp_path / "parts", settings=TEACHER, accumulate=parts)
    assert_same(tmp_path / "parts", teacher)
    settings = DISTILLED["consistency"]
    distill("consistency", teacher, tmp_path / "one", steps=2, settings=settings)
    distill("consistency", teacher, tmp_path / "more", steps=2, settings=settings, accumulate=parts)
    assert_same(tmp_path / "one", tmp_path / "more")


def test_a_batch_that_does_not_divide(tmp_path):
    with pytest.raises(UsageError, match="16 does not divide into 1 processes x 3 parts"):
        train("grid25-labelled-teacher", tmp_path / "t", settings=TEACHER, accumulate=3)
    with pytest.raises(UsageError, match="accumulate must be at least 1"):
        train("grid25-labelled-teacher", tmp_path / "t", settings=TEACHER, accumulate=0)
    assert list(tmp_path.iterdir()) == []


def test_parts_do_not_tear_groups_apart(teacher, tmp_path):
    settings = {"batch_size": "16", "group": "8", "iterations": "1"}
    with pytest.raises(UsageError, match=r"16 does not divide into 1 processes x 4 parts of whole groups of 8"):
        distill("imm", teacher, tmp_path / "s", steps=2, settings=settings, accumulate=4, dry_run=True)
    assert distill("imm", teacher, tmp_path / "s", steps=2, settings=settings, accumulate=2)["training_steps"] == 1


def test_half_an_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="MASTER_ADDR, MASTER_PORT") as caught:
        train("grid25-labelled-teacher", tmp_path / "t", settings=TEACHER)
    assert "torchrun" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


class Stop(BaseException):
    """The end of a process, as far as the trainer can tell."""


@pytest.mark.parametrize("method", ["consistency", "kd", "feature_kd"])
def test_half_precision_is_near_and_resumes(teacher, tmp_path, method):
    own = {"kd": {"num_pairs": "40"}, "feature_kd": {"width": "0.5"}}
    settings = {"batch_size": "16", "iterations": "6"} | own.get(method, {})

    def stop(phase, done, total, loss):
        if done == 4:
            raise Stop

    def run(name: str, **options: Any) -> None:
        distill(
            method,
            teacher,
            tmp_path / name,
            steps=STEPS.get(method, 2),
            settings=settings,
            checkpoint_every=3,
            **options,
        )

    run("fp32")
    run("bf16", precision="bf16")
    with pytest.raises(Stop):
        run("stopped", precision="bf16", progress=stop)
    run("stopped", precision="bf16", resume=True)
    assert load_student(tmp_path / "stopped").digest == load_student(tmp_path / "bf16").digest
    exact, near = weights(tmp_path / "fp32"), weights(tmp_path / "bf16")
    assert all(value.dtype == torch.float32 for value in near.values())
    assert any((exact[key] != near[key]).any() for key in exact)
    moved = max(float((exact[key] - near[key]).abs().max()) for key in exact)
    assert moved < 0.02, "six steps of at most 1e-3 to 2e-3 each, in nearly the same direction"
    assert load_student(tmp_path / "bf16").spec.provenance["loop"] == {"accumulate": 1, "precision": "bf16"}
    assert "loop" not in load_student(tmp_path / "fp32").spec.provenance
