"""Making the environment, with a Python and a pip that play their parts."""

from __future__ import annotations

import os
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from distill_rt.cli.main import main
from distill_rt.core.errors import ResourceError, TargetError
from distill_rt.export.quantize import environment
from distill_rt.export.quantize.environment import (
    MODELOPT_VERSION,
    PYTHON_VARIABLE,
    REQUIREMENTS,
    find_python,
    worker_directory,
    worker_python,
)

Capture = pytest.CaptureFixture[str]
Disk = namedtuple("Disk", "total used free")


@pytest.fixture(autouse=True)
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`sys.executable` is a program that makes an "environment" whose python logs its arguments; returns the log."""
    monkeypatch.delenv(PYTHON_VARIABLE, raising=False)
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: Disk(10**12, 0, 10**12))
    log, fake = tmp_path / "calls", tmp_path / "fakepython"
    inner = f'#!/bin/sh\necho "$@" >> "{log}"\ncase "$*" in *"$FAKE_FAILS"*)'
    inner += ' [ -n "$FAKE_FAILS" ] && { printf "$FAKE_SAYS"; exit 1; };; esac\nexit 0\n'
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> "{log}"\nfor last; do :; done\nmkdir -p "$last/bin"\n'
        f'cat > "$last/bin/python" <<\'END\'\n{inner}END\nchmod +x "$last/bin/python"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setattr(environment.sys, "executable", str(fake))
    return log


def fails(monkeypatch: pytest.MonkeyPatch, at: str, says: str) -> None:
    monkeypatch.setenv("FAKE_FAILS", at)
    monkeypatch.setenv("FAKE_SAYS", says)


def test_it_is_made_once(calls: Path) -> None:
    stages: list[str] = []
    assert find_python() is None
    python = worker_python(lambda stage, *counts: stages.append(stage))
    assert python == worker_directory() / "bin" / "python" == find_python()
    venv, torch, packages, modelopt, trial = calls.read_text().splitlines()
    assert venv == f"-I -m venv {worker_directory()}"
    assert all(requirement in packages.split() for requirement in REQUIREMENTS)
    assert "download.pytorch.org/whl/cpu" in torch
    assert "pytorch.org" not in packages
    assert modelopt.endswith(f"--no-deps nvidia-modelopt=={MODELOPT_VERSION}")
    assert "import modelopt.onnx.quantization" in trial
    assert any("GB to download" in stage for stage in stages)
    before = calls.read_text()
    assert worker_python() == python
    assert calls.read_text() == before


def test_everything_is_pinned() -> None:
    assert all(requirement.count("==") == 1 for requirement in REQUIREMENTS)
    names = {requirement.partition("==")[0] for requirement in REQUIREMENTS}
    assert not names & {"onnxruntime-gpu", "cupy-cuda12x"}, "gigabytes that a processor does not use"


@pytest.mark.parametrize(
    ("at", "says", "expected"),
    [
        ("numpy==", "noise\\nERROR: Could not find a version that satisfies numpy\\n", "Could not find a version"),
        ("nvidia-modelopt==", "ERROR: No matching distribution found for nvidia-modelopt\\n", "No matching"),
        ("import modelopt", "Traceback\\nImportError: libgomp.so.1\\n", "ImportError: libgomp.so.1"),
    ],
)
def test_no_network(monkeypatch: pytest.MonkeyPatch, at: str, says: str, expected: str) -> None:
    fails(monkeypatch, at, says)
    with pytest.raises(TargetError) as caught:
        worker_python()
    error = caught.value
    assert error.code == "modelopt-setup-failed"
    assert "\n" not in str(error)
    assert expected in error.message
    assert "distill-rt doctor --setup-modelopt" in error.hint
    assert PYTHON_VARIABLE in error.hint
    assert not worker_directory().exists(), "half an environment is worse than none"
    monkeypatch.setenv("FAKE_FAILS", "")
    assert worker_python().is_file()


def test_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    fails(monkeypatch, "numpy==", "ERROR: [Errno 28] No space left on device\\n")
    with pytest.raises(ResourceError) as caught:
        worker_python()
    assert caught.value.code == "disk-full"
    monkeypatch.setattr(environment.shutil, "disk_usage", lambda path: Disk(10**12, 0, 10**9))
    with pytest.raises(ResourceError) as caught:
        worker_python()
    assert "needs 2.5 GB" in caught.value.message
    assert "1.0 GB" in caught.value.message


def test_what_an_interrupt_left_is_made_again(calls: Path) -> None:
    (worker_directory() / "bin").mkdir(parents=True)
    (worker_directory() / "bin" / "python").touch()
    assert find_python() is None, "no marker: it was not finished"
    assert worker_python().stat().st_size > 0


def test_two_at_once_make_one(calls: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(worker_python())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 3
    assert calls.read_text().count("-m venv") == 1


def test_doctor_makes_it_and_says_where_it_is(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["doctor"]) == 0
    assert "distill-rt doctor --setup-modelopt" in capsys.readouterr().out
    fails(monkeypatch, "numpy==", "ERROR: no network\\n")
    assert main(["doctor", "--setup-modelopt"]) == 4
    (line,) = capsys.readouterr().err.splitlines()
    assert "no network" in line
    monkeypatch.setenv("FAKE_FAILS", "")
    assert main(["doctor", "--setup-modelopt"]) == 0
    assert str(worker_directory() / "bin" / "python") in capsys.readouterr().out


def test_a_named_python_that_is_none(capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PYTHON_VARIABLE, str(tmp_path / "python"))
    with pytest.raises(TargetError):
        find_python()
    assert main(["doctor"]) == 0
    assert "which is not a program" in capsys.readouterr().out
    monkeypatch.setenv(PYTHON_VARIABLE, sys.executable)
    assert os.access(find_python() or "", os.X_OK)
