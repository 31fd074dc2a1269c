"""What a section writes: bars that NaN breaks, figures that survive a kill, JSON without NaN."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from acceptance.report import Recorder, rounded, write_json


def test_bars(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "s.json", dry=False, seconds=10)
    recorder.at_most("a", 1.0, 1.0)
    recorder.at_least("b", 0.9, 0.9)
    recorder.holds("c", True, note="said")
    recorder.finish()
    written = json.loads((tmp_path / "s.json").read_text())
    assert (written["status"], [bar["passed"] for bar in written["bars"]]) == ("passed", [True, True, True])
    assert written["bars"][2] == {
        "name": "c", "value": True, "rule": "is", "threshold": True, "passed": True, "note": "said",
    }  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.0000001])
def test_broken_bars(tmp_path: Path, value: float) -> None:
    recorder = Recorder(tmp_path / "s.json", dry=False, seconds=10)
    recorder.at_most("too much", value, 1.0)
    recorder.at_least("too little", -value, 1.0)
    recorder.holds("wrong", False)
    assert [bar["passed"] for bar in recorder.content["bars"]] == [False] * 3
    recorder.finish()
    assert recorder.content["status"] == "failed"
    assert recorder.content["reason"] == "broken: too much, too little, wrong"


def test_a_dry_run_judges_no_speed(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "s.json", dry=True, seconds=10)
    recorder.at_most("speed", 5.0, 1.0, speed=True)
    recorder.at_most("error", 5.0, 1.0)
    assert [bar["passed"] for bar in recorder.content["bars"]] == [None, False]


def test_every_entry_is_on_the_disk_at_once(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "s.json", dry=False, seconds=10)
    recorder.figure("a", {1: [1.23456789, math.nan]})
    written = json.loads((tmp_path / "s.json").read_text())
    assert (written["status"], written["figures"]) == ("running", {"a": {"1": [1.2346, "nan"]}})
    assert rounded((1, True, "x", None)) == [1, True, "x", None]
    before = (tmp_path / "s.json").read_bytes()
    with pytest.raises(ValueError):
        write_json(tmp_path / "s.json", {"a": math.nan})
    assert (tmp_path / "s.json").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]
