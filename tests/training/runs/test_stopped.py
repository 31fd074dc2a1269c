"""Runs that stop or are killed go on where they were, and end with the same bits."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys

import pytest
from short_runs import SETTINGS, STEPS, TEACHER_SETTINGS, TEACHERS, Stop, distill_case, stop_at

from distill_rt.models import load_student
from distill_rt.training.methods import METHODS
from distill_rt.training.run import distill, train


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_run_that_stops_anywhere_ends_with_the_same_digest(teachers, method, tmp_path):
    """For progressive: before, at and after a change of phase, with the stage's teacher in the checkpoint; for consistency
    with the average that gives the targets."""
    teacher = teachers["grid25-labelled"]
    whole = distill_case(method, teacher, tmp_path / "whole")
    for step in (2, 5, 7, 13, 17):
        if step > whole["training_steps"]:
            break
        out = tmp_path / f"{step}"
        with pytest.raises(Stop):
            distill_case(method, teacher, out, checkpoint_every=2, progress=stop_at(step))
        assert not out.exists()
        made = distill_case(method, teacher, out, resume=True, checkpoint_every=2)
        assert made["digest"] == whole["digest"], f"stopped at {step}"
        assert not (tmp_path / f"{step}.checkpoint").exists()


def test_a_convolutional_run_that_stops_ends_with_the_same_digest(teachers, tmp_path):
    """Its weights are channels-last and its optimiser is fused: moments in another memory format would hit other weights."""
    settings = {"steps": TEACHERS["digits"], **TEACHER_SETTINGS}
    with pytest.raises(Stop):
        train("digits-teacher", tmp_path / "t", settings=settings, checkpoint_every=1, progress=stop_at(3))
    made = train("digits-teacher", tmp_path / "t", settings=settings, resume=True)
    assert made["digest"] == load_student(teachers["digits"]).digest


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
import diffusers.models.embeddings  # which every child would import anew
import torch
torch.set_num_threads(1)
from distill_rt.training.run import distill, train

root, jobs, kills = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
random.seed(int(sys.argv[4]))

def walk(progress):
    for name, method, teacher, steps, settings in jobs:
        if not (root / name).exists():
            options = dict(settings=settings, resume=True, checkpoint_every=3, progress=progress)
            if teacher is None:
                train(method, root / name, **options)
            else:
                distill(method, root / teacher, root / name, steps=steps, **options)

while True:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            walk(lambda *arguments: os.write(writer, b"."))
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    if kills > 0:
        os.read(reader, 1)
        for _ in range(random.randint(0, 12)):
            os.read(reader, 1)  # some steps later, and then
        time.sleep(0.01 * random.random())  # somewhere within a step or a checkpoint
        os.kill(child, signal.SIGKILL)
        kills -= 1
    while os.read(reader, 4096):
        pass
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status))
    print("killed", flush=True)
"""


def test_runs_that_are_killed_at_random_end_with_the_same_digests(tmp_path):
    """SIGKILL, again and again, on a walk from the data to four students; every process goes on where the last one was."""
    jobs = [
        ("teacher", "grid25-labelled-teacher", None, 0, {"steps": "40", "batch_size": "32"}),
        *((method, method, "teacher", STEPS.get(method, 2), SETTINGS[method]) for method in SETTINGS),
    ]
    expected = {}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for name, method, teacher, steps, settings in jobs:
        if teacher is None:
            made = train(method, whole / name, settings=settings)
        else:
            made = distill(method, whole / teacher, whole / name, steps=steps, settings=settings)
        expected[name] = made["digest"]
    killed.mkdir()
    kills, seed = 8, random.randrange(2**32)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(killed), json.dumps(jobs), str(kills), str(seed)],
        env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed") >= 2, done.stdout
    assert {name: load_student(killed / name).digest for name in expected} == expected, f"seed {seed}"
    assert {path.name for path in killed.iterdir() if path.suffix != ".partial"} == set(expected)
