"""Progress: on a terminal only, with and without rich."""

from __future__ import annotations

import io
import sys

import pytest

from distill_rt.cli import progress as module
from distill_rt.cli.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def use_all(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(sys, "stderr", stderr)
    with progress_bar() as progress:
        progress("loading")
        for step in range(1, 4):
            progress("training", step, 3, 0.5)
        progress("done")
    return stderr.getvalue()


def test_no_terminal_no_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert use_all(io.StringIO(), monkeypatch) == ""
    assert capsys.readouterr().out == ""


def test_one_line_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    text = use_all(Terminal(), monkeypatch)
    assert "training 3/3  loss 0.5" in text
    assert text.endswith("\r\033[K"), "the line is cleared at the end"
    assert "\n" not in text
    assert capsys.readouterr().out == ""


def test_the_line_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the speed since the stage began: a resumed run begins at 600 of 1000."""
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(sys, "stderr", Terminal())
    line = module._Line()
    for done, second in ((600, 100.0), (601, 102.0), (610, 120.0), (1000, 900.0)):
        now[0] = second
        line("training", done, 1000, 0.5)
    shown = sys.stderr.getvalue().split("\r\033[K")[1:]  # type: ignore[attr-defined]
    assert shown == [
        "training 600/1000  loss 0.5",
        "training 601/1000  13:18 left  loss 0.5",
        "training 610/1000  13:00 left  loss 0.5",
        "training 1000/1000  loss 0.5",
    ]
    assert module._time_left(10.0, 1, 3600) == "  10:00:00 left"


def test_bars_with_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    text = use_all(Terminal(), monkeypatch)
    assert "training" in text
    assert "3/3" in text
    assert "loss 0.5" in text
    assert capsys.readouterr().out == ""
