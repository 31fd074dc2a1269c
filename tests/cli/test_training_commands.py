"""The commands that need torch, as processes: what a person types, and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from distill_rt.core.optional import installed

pytestmark = pytest.mark.skipif(not installed("torch"), reason="needs torch")

RUN = [sys.executable, "-P", "-m", "distill_rt.cli.main"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


def test_help_lists_the_methods_that_there_are() -> None:
    from distill_rt.cli import distill
    from distill_rt.training.methods import METHODS

    assert tuple(METHODS) == distill.METHODS


def test_ctrl_c_leaves_at_most_a_checkpoint(tmp_path: Path) -> None:
    words = ["train", "digits-teacher", "--out", "teacher", "--set", "steps=100000", "--json"]
    process = subprocess.Popen(
        [*RUN, *words], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    time.sleep(4.0)  # within imports or steps: both must end well
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert json.loads(out)["error"]["family"] == "signal"
    assert err == ""
    assert set(os.listdir(tmp_path)) <= {"teacher.checkpoint"}


def test_sigterm_leaves_a_checkpoint(tmp_path: Path) -> None:
    words = [
        "train",
        "grid25-teacher",
        "--out",
        "teacher",
        "--set",
        "steps=1000000",
        "--checkpoint-every",
        "5",
        "--json",
    ]
    process = subprocess.Popen(
        [*RUN, *words], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "teacher.checkpoint").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.terminate()
    out, err = process.communicate(timeout=60)
    assert process.returncode == 143, err
    assert json.loads(out)["error"]["code"] == "sigterm"
    assert os.listdir(tmp_path) == ["teacher.checkpoint"]


def test_torchrun_starts_several_processes(tmp_path: Path) -> None:
    """One of them speaks."""
    words = ["train", "grid25-teacher", "--out", "teacher", "--set", "steps=6", "--set", "batch_size=8", "--json"]
    log = ["--journal", "log", "--journal-every", "2"]
    launcher = [
        "-P",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "distill_rt.cli.main",
    ]
    done = subprocess.run(
        [sys.executable, *launcher, *words, *log],
        cwd=tmp_path,
        env=ENVIRONMENT | {"PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["training_steps"] == 6
    assert sorted(os.listdir(tmp_path)) == ["log", "teacher"]
    assert len((tmp_path / "log" / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.parametrize(
    ("words", "exit_code", "said"),
    [
        (["train", "nothing", "--out", "x"], 2, "digits-teacher"),
        (["train", "digits-teacher", "--out", "x", "--set", "nonsense=1"], 2, "settings:"),
        (["train", "digits-teacher", "--out", "x", "--set", "steps=many"], 2, "steps"),
        (["train", "digits-teacher", "--out", "here"], 2, "--force"),
        (["train", "digits-teacher", "--out", "x", "--data", "nowhere"], 2, "hf:NAME"),
        (["train", "digits-teacher", "--out", "x", "--data", "here"], 2, "there are no images in here"),
        (["train", "digits-teacher", "--out", "x", "--checkpoint-every", "0"], 2, "--checkpoint-every"),
        (["train", "digits-teacher", "--out", "here", "--dry-run"], 2, "--force"),
        (["train", "digits-teacher", "--out", "x", "--sample-every", "5"], 2, "--journal"),
        (["distill", "magic", "--teacher", "t", "--out", "x"], 2, "progressive"),
        (["distill", "progressive", "--teacher", "none", "--out", "x"], 3, "none"),
        (["evaluate", "none", "--teacher", "none"], 3, "none"),
        (["export", "none", "--out", "x"], 3, "none"),
    ],
)
def test_mistakes(
    words: list[str],
    exit_code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from distill_rt.cli.main import main

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(words) == exit_code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert said in err
    assert os.listdir(tmp_path) == ["here"]


def test_recipes_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    from distill_rt.cli.main import main
    from distill_rt.training.recipes import RECIPES

    assert main(["recipes", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["recipes"]
    assert set(listed) == set(RECIPES)
    assert listed["digits-teacher"]["sample_shape"] == [1, 8, 8]
    assert {"method": "progressive", "nfe": 4, "c2st": 0.508, "passed": True} in listed["digits-teacher"]["students"]
    assert main(["recipes"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in RECIPES)
    assert "not measured" in text


def test_a_dry_run_prints_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from distill_rt.cli.main import main

    monkeypatch.chdir(tmp_path)
    words = ["train", "digits-teacher", "--out", "x", "--dry-run", "--set", "steps=7", "--checkpoint-every", "3"]
    assert main(words) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["settings.steps"] == lines["training_steps"] == "7"
    assert lines["checkpoint_every"] == "3"
    assert lines["contract.plans"] == "4 8 16 32 64"
    assert lines["teacher"] == "none"
    assert main([*words, "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert len(planned["contract"]["plans"]["8"]["rows"]) == 8
    assert os.listdir(tmp_path) == []


def test_a_journal_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distill_rt.cli.main import main

    monkeypatch.chdir(tmp_path)
    settings = ["--set", "steps=4", "--set", "batch_size=4"]
    log = ["--journal", "log", "--journal-every", "2", "--sample-every", "4"]
    assert main(["train", "digits-teacher", "--out", "x", *settings, *log]) == 0
    assert [json.loads(line)["step"] for line in Path("log/metrics.jsonl").read_text().splitlines()] == [2, 4]
    assert os.listdir("log/samples") == ["step-0000004.png"]


def test_a_setting_is_given_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from distill_rt.cli.main import main

    words = ["train", "grid25-teacher", "--out", str(tmp_path / "t"), "--set", "steps=2", "--set", "steps=3"]
    assert main(words) == 2
    assert "--set steps= was given 2 times" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--num-samples", "3"], ["--target", "bogus"], ["--seed", "-1"], ["--effort", "0"]])
def test_a_demo_that_cannot_be_is_refused_before_it_begins(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from distill_rt.cli.main import main

    assert main(["demo", "--out", str(tmp_path / "demo"), *flags]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
