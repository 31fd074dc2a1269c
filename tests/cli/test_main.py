"""The frame around every command: arguments, ``--json``, exit codes, signals, closed pipes, surprises."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distill_rt.cli import doctor
from distill_rt.cli.main import COMMANDS, main
from distill_rt.core.errors import ArtifactError, DistillError, GateError, ResourceError, TargetError, UsageError

Capture = pytest.CaptureFixture[str]

WRONG_ARGUMENTS: list[tuple[list[str], str]] = [
    ([], "command-missing"),
    (["--json"], "command-missing"),
    (["paint"], "command-unknown"),
    (["--nonsense"], "bad-arguments"),
    (["generate"], "bad-arguments"),
    (["generate", "e", "--out", "a.png", "--nonsense"], "bad-arguments"),
    (["generate", "e", "--out", "a.png", "--jso"], "bad-arguments"),
    (["generate", "e", "--out", "a.png", "--label", "three"], "bad-arguments"),
    (["generate", "e", "--out", "a.png", "--label", "1,,2"], "bad-arguments"),
    (["generate", "e", "--out", "a.png", "--seed", "1.5"], "bad-arguments"),
    (["generate", "e", "--out", "a.png", "--scale", "0"], "bad-arguments"),
    (["compile", "b", "--out", "e", "--batch", "0"], "bad-arguments"),
    (["compile", "b", "--out", "e", "--precision", "int3"], "bad-arguments"),
    (["train", "digits-teacher", "--out", "t", "--set", "steps"], "bad-arguments"),
    (["export", "s", "--out", "b", "--mode", "dream"], "bad-arguments"),
    (["bench", "e", "--requests", "-1"], "bad-arguments"),
]


@pytest.mark.parametrize(("words", "code"), WRONG_ARGUMENTS)
def test_wrong_arguments_are_one_line_and_code_2(words: list[str], code: str, capsys: Capture) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    as_json = [] if "--json" in words else ["--json"]
    if not as_json:
        assert json.loads(out)["error"]["code"] == code
        return
    assert out == ""
    assert err.startswith("distill-rt: ")
    assert err.count("\n") == 1
    assert main([*words, "--json"]) == 2
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1
    answer = json.loads(out)
    assert answer["error"]["code"] == code
    assert answer["exit_code"] == 2


def test_help_lists_every_command(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)
    assert "Exit codes" in out


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("distill-rt 0.")
    assert main(["--version", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"][0].isdigit()


@pytest.mark.parametrize(
    ("error", "exit_code", "family"),
    [
        (UsageError("m", code="c", hint="h"), 2, "usage"),
        (ArtifactError("m", code="c"), 3, "artifact"),
        (TargetError("m", code="c", details={"a": [1]}), 4, "target"),
        (ResourceError("m", code="c"), 5, "resources"),
        (GateError("m", code="c"), 6, "gate"),
        (DistillError("m", code="c"), 1, "error"),
        (MemoryError(), 5, "resources"),
        (OSError(5, "Input/output error", "/some/file"), 5, "resources"),
        (KeyboardInterrupt(), 130, "signal"),
        (ZeroDivisionError("of ours"), 1, "internal"),
        (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), 4, "target"),
        (ModuleNotFoundError("No module named 'distill_rt.x'", name="distill_rt.x"), 1, "internal"),
    ],
)
def test_every_failure_has_its_exit_code(
    error: BaseException, exit_code: int, family: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def fail(args: Any) -> None:
        raise error

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == exit_code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "Traceback" not in err
    assert main(["doctor", "--json"]) == exit_code
    out, err = capsys.readouterr()
    answer = json.loads(out)
    assert (err, answer["exit_code"], answer["error"]["family"]) == ("", exit_code, family)
    assert set(answer["error"]) == {"family", "code", "message", "hint", "details"}


def test_a_surprise_says_how_to_see_more(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def fail(args: Any) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == 1
    err = capsys.readouterr().err
    assert "ZeroDivisionError: two lines" in err
    assert "DISTILL_RT_TRACEBACK=1" in err
    monkeypatch.setenv("DISTILL_RT_TRACEBACK", "1")
    assert main(["doctor"]) == 1
    assert "Traceback" in capsys.readouterr().err


def start(program: str, cwd: Path, **more: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", program],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not path.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


SLOW_COMPILE = """
import pathlib, sys, time
from distill_rt.backends.onnxruntime import OnnxRuntime
from distill_rt.cli.main import main
compile_one = OnnxRuntime.compile
def slow(self, *args):
    files = compile_one(self, *args)
    pathlib.Path("started").touch()
    time.sleep(60)
    return files
OnnxRuntime.compile = slow
sys.exit(main(["compile", sys.argv[1], "--target", "onnxruntime:cpu", "--out", "out/e.engine", *sys.argv[2:]]))
"""


@pytest.mark.parametrize(
    ("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)], ids=str
)
@pytest.mark.parametrize("flags", [[], ["--no-cache"]], ids=["cached", "uncached"])
def test_a_signal_ends_a_compile_and_leaves_nothing(
    number: signal.Signals, exit_code: int, flags: list[str], artifacts: dict[str, Path], tmp_path: Path
) -> None:
    environment = os.environ | {"DISTILL_RT_CACHE": str(tmp_path / "cache")}
    words = [str(artifacts["bundle"]), *flags]
    program = f"import sys; sys.argv[1:] = {words!r}\n{SLOW_COMPILE}"
    process = start(program, tmp_path, env=environment)
    wait_for(tmp_path / "started", process)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == exit_code, err
    assert out == ""
    assert err.splitlines() == [f"distill-rt: ended by {number.name}"]
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if not path.name.endswith(".lock")}
    assert left <= {"started", "out", "cache", "cache/engines"}


def test_ctrl_c_ends_a_benchmark(engine: Path, tmp_path: Path) -> None:
    program = f"""
import pathlib, sys
from distill_rt.bench import harness
from distill_rt.cli.main import main
measure = harness._run
def told(*args):
    pathlib.Path("started").touch()
    return measure(*args)
harness._run = told
sys.exit(main(["bench", {str(engine)!r}, "--requests", "100000000", "--out", "report.json", "--json"]))
"""
    process = start(program, tmp_path)
    wait_for(tmp_path / "started", process)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert json.loads(out)["error"]["code"] == "sigint"
    assert err == ""
    assert os.listdir(tmp_path) == ["started"]


def test_a_signal_waits_for_an_import(tmp_path: Path) -> None:
    """An exception in the middle of an extension's start-up would end the process inside of C++."""
    (tmp_path / "heavy.py").write_text(
        "import pathlib, time\npathlib.Path('started').touch()\ntime.sleep(1)\npathlib.Path('imported').touch()\n"
    )
    program = """
import sys
from distill_rt.cli import doctor
from distill_rt.cli.main import main
def run(args):
    sys.path.insert(0, ".")
    import heavy
    while True:
        pass
doctor.run = run
raise SystemExit(main(["doctor"]))
"""
    process = start(program, tmp_path)
    wait_for(tmp_path / "started", process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err.splitlines() == ["distill-rt: ended by SIGINT"]
    assert (tmp_path / "imported").exists()


def test_an_ignored_signal_stays_ignored(tmp_path: Path) -> None:
    """nohup: the terminal goes, the work goes on."""
    program = """
import signal, os
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from distill_rt.cli import doctor
from distill_rt.cli.main import main
from distill_rt.cli.outcome import Outcome
def run(args):
    os.kill(os.getpid(), signal.SIGHUP)
    return Outcome(data={}, text="went on")
doctor.run = run
raise SystemExit(main(["doctor"]))
"""
    process = start(program, tmp_path)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, "went on\n"), err


def test_a_closed_pipe_is_no_failure_of_ours(tmp_path: Path) -> None:
    program = """
from distill_rt.cli import doctor
from distill_rt.cli.main import main
from distill_rt.cli.outcome import Outcome
doctor.run = lambda args: Outcome(data={}, text="line\\n" * 100_000)
raise SystemExit(main(["doctor"]))
"""
    process = start(program, tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=30) == 141
    assert process.stderr.read() == ""


def test_a_name_that_the_terminal_cannot_show(tmp_path: Path) -> None:
    program = """
from distill_rt.cli import doctor
from distill_rt.cli.main import entry
from distill_rt.cli.outcome import Outcome
doctor.run = lambda args: Outcome(data={}, text="\\u00e9.png \\udcff.png")
import sys
sys.argv = ["distill-rt", "doctor"]
entry()
"""
    for encoding in ("ascii", "utf-8:strict"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", program],
            env={**os.environ, "PYTHONIOENCODING": encoding},
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"\\udcff.png" in done.stdout


def test_a_signal_without_stdout() -> None:
    program = """
import os, signal
from distill_rt.cli import doctor
from distill_rt.cli.main import entry
doctor.run = lambda args: os.kill(os.getpid(), signal.SIGTERM)
import sys
sys.argv, sys.stdout = ["distill-rt", "doctor"], None
entry()
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 143
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_a_full_disk_behind_stdout(flags: list[str]) -> None:
    words = ["doctor", *flags]
    with open("/dev/full", "w") as full:
        program = f"import sys\nfrom distill_rt.cli.main import main\nsys.exit(main({words!r}))"
        done = subprocess.run(
            [sys.executable, "-P", "-c", program], stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 5
    assert "Traceback" not in done.stderr
    if not flags:
        assert "No space left" in done.stderr
