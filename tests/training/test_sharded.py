"""Sharded weights (FSDP2) over gloo: the weights of replicated processes, killed or not, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from several_processes import assert_same, start, together

from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.models import load_student
from distill_rt.training.checkpoint import read_head
from distill_rt.training.journal import JournalOptions
from distill_rt.training.run import train

TEACHER = {"steps": "12", "batch_size": "16", "warmup": "2"}
JOB: dict[str, Any] = {"recipe": "grid25-labelled-teacher", "settings": TEACHER, "checkpoint_every": 4}
DISTILLED: dict[str, dict[str, str]] = {
    "progressive": {"guidance_iterations": "3", "stage_iterations": "3", "last_iterations": "3", "batch_size": "16"},
    "consistency": {"iterations": "6", "batch_size": "16"},
    "kd": {"iterations": "6", "batch_size": "16", "num_pairs": "40"},
}
STEPS = {"kd": 1}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("sharded") / "teacher"
    train("grid25-labelled-teacher", out, settings=TEACHER)
    return out


def test_sharded_processes_equal_replicated_ones(teacher, tmp_path):
    """With clipped gradients, averages, phases that copy the student, slow copies, pairs, and batches in parts."""
    jobs: list[dict[str, Any]] = []
    parts = {"accumulate": 2, "checkpoint_activations": True}
    for parallel in ("ddp", "fsdp"):
        jobs.append({**JOB, "out": tmp_path / f"teacher-{parallel}", "parallel": parallel})
        jobs.append({**JOB, "out": tmp_path / f"parts-{parallel}", "parallel": parallel, **parts})
        small = {"recipe": "digits-teacher", "settings": {"steps": "3", "batch_size": "4"}}
        jobs.append({**small, "out": tmp_path / f"unet-{parallel}", "parallel": parallel})
        for method, settings in DISTILLED.items():
            job = {"method": method, "teacher": teacher, "steps": STEPS.get(method, 2), "settings": settings}
            jobs.append({**job, "out": tmp_path / f"{method}-{parallel}", "parallel": parallel})
    assert together(2, *jobs) == [0, 0]
    for name in ("teacher", "parts", "unet", *DISTILLED):
        assert_same(tmp_path / f"{name}-fsdp", tmp_path / f"{name}-ddp")
    assert_same(tmp_path / "teacher-fsdp", teacher)
    assert load_student(tmp_path / "teacher-fsdp").spec.provenance["loop"] == {"parallel": "fsdp"}
    assert "loop" not in load_student(tmp_path / "teacher-ddp").spec.provenance


def test_a_killed_process_changes_nothing(tmp_path):
    """One process gets SIGKILL; all are started again and end with the weights of an undisturbed run."""
    job = {**JOB, "parallel": "fsdp"}
    assert together(2, {**job, "out": tmp_path / "whole"}) == [0, 0]
    assert together(2, {**job, "out": tmp_path / "killed", "die_at": 7})[0] == -signal.SIGKILL
    assert not (tmp_path / "killed").exists()
    kept = tmp_path / "killed.checkpoint"
    assert len(list(kept.glob("*.safetensors"))) == 2
    assert sorted(path.suffix for path in kept.iterdir()) == [".json", ".safetensors", ".safetensors"]
    for name in ("one", "four"):
        shutil.copytree(kept, tmp_path / f"{name}.checkpoint")
    assert together(2, {**job, "out": tmp_path / "killed", "resume": True}) == [0, 0]
    assert load_student(tmp_path / "killed").digest == load_student(tmp_path / "whole").digest
    # More processes cut the weights anew: the same run up to rounding.
    assert together(4, {**job, "out": tmp_path / "four", "resume": True}) == [0] * 4
    assert_same(tmp_path / "four", tmp_path / "whole")
    # Replicated weights are another run; a changed file is noticed.
    with pytest.raises(ArtifactError, match="loop is"):
        train(**JOB, out=tmp_path / "one", resume=True)
    head = json.loads((tmp_path / "one.checkpoint" / "checkpoint.json").read_text())
    shard = next((tmp_path / "one.checkpoint").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match=rf"{shard.name} has changed"):
        read_head(tmp_path / "one.checkpoint", head["config"])


def test_a_signal_to_one_process_stops_all(tmp_path):
    long = {**JOB, "settings": TEACHER | {"steps": "100000"}, "out": tmp_path / "long", "parallel": "fsdp"}
    processes = start(2, long)
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "long.checkpoint").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        processes[1].send_signal(signal.SIGTERM)
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [-signal.SIGTERM] * 2, outputs
    assert [path.name for path in tmp_path.iterdir()] == ["long.checkpoint"]


def test_what_is_refused(teacher, tmp_path):
    with pytest.raises(UsageError, match="shares weights out over processes, and this is one") as caught:
        train(**JOB, out=tmp_path / "t", parallel="fsdp")
    assert "torchrun" in caught.value.hint
    journal = JournalOptions(directory=tmp_path / "j", sample_every=2)
    with pytest.raises(UsageError, match="no sheets of samples"):
        train(**JOB, out=tmp_path / "t", parallel="fsdp", journal=journal)
    jobs = [
        {
            "method": method,
            "teacher": teacher,
            "steps": steps,
            "parallel": parallel,
            "out": tmp_path / "s",
            "said": said,
        }
        for method, steps, parallel, said in (
            ("dmd", 1, "fsdp", "this method trains 'both'"),
            ("feature_kd", 4, "fsdp", "this method trains 'pair'"),
            ("kd", 1, "none", "parallel=none is for one process, and there are 2"),
        )
    ]
    assert together(2, *jobs) == [0, 0]
    assert list(tmp_path.iterdir()) == []
