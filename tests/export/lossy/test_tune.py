"""From a step bundle to a tuned trajectory bundle and its engine; times are given, so that the verdict is known."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade import write_bundle
from scoped import add_scopes

from distill_rt.backends.engine import open_engine
from distill_rt.core import codec
from distill_rt.core.errors import UsageError
from distill_rt.core.lossy_report import LossyReport
from distill_rt.export.bundle import open_bundle
from distill_rt.export.compile import compile_bundle
from distill_rt.export.lossy import measure
from distill_rt.export.lossy.tune import tune_bundle

TARGET = "onnxruntime:cpu"
Times = Callable[[int], float]


@pytest.fixture
def given_times(monkeypatch: pytest.MonkeyPatch) -> Callable[[Times], None]:
    """``given_times(t)``: the full plan takes 1, the plan of one step 0.9, candidate i ``t(i)``."""

    def give(times: Times) -> None:
        def rounds(programs: Sequence[Any], seconds: float) -> Any:
            row = [1.0, 0.9, *(times(i) for i in range(len(programs) - 2))]
            return np.tile(row, (20, 1))

        monkeypatch.setattr(measure, "_rounds", rounds)

    return give


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("tune") / "bundle", "none", edit_model=add_scopes)


def operators(directory: Path) -> list[str]:
    return [node.op_type for node in onnx.load(directory / "onnx/trajectory.onnx").graph.node]


def test_a_winner_enters_the_bundle_and_the_engine(
    bundle: Path, tmp_path: Path, given_times: Callable[[Times], None]
) -> None:
    given_times(lambda i: 0.3 if i == 0 else 1.0)
    report = tune_bundle(bundle, tmp_path / "tuned", ("reuse", "todo"), target=TARGET)
    winner = report.trials[0]
    assert winner.accepted, winner
    assert report.chosen == winner.name == "deepcache, cut above up-block 0, every 2"
    assert winner.alternative == report.plans[1].distance > winner.distance
    assert report.confirmed is not None
    assert report.confirmed.accepted
    assert report.confirmed.distance != winner.distance  # other images
    assert list(report.skipped) == ["todo"]
    # Two rows lost their first convolution, and as nothing else tells them from the row before, their last one too.
    assert operators(tmp_path / "tuned").count("Conv") == 8 - 4
    body = open_bundle(tmp_path / "tuned").body
    assert body.lossy == report
    assert winner.passes[0] in body.versions["passes"]
    compile_bundle(tmp_path / "tuned", TARGET, tmp_path / "engine", use_cache=False)
    engine = open_engine(tmp_path / "engine").body
    assert codec.from_json(LossyReport, engine.options["lossy"]) == report
    assert engine.gate is not None
    assert max(figure.relative_l2 for figure in engine.gate.trajectories.values()) < 1e-3


def test_losers_are_left_out(bundle: Path, tmp_path: Path, given_times: Callable[[Times], None]) -> None:
    given_times(lambda i: 1.5)
    report = tune_bundle(bundle, tmp_path / "tuned", ("reuse",), target=TARGET)
    assert not report.chosen
    assert report.trials
    assert not any(trial.accepted for trial in report.trials)
    assert all("slower" in trial.reason for trial in report.trials)
    assert operators(tmp_path / "tuned").count("Conv") == 8
    compile_bundle(tmp_path / "tuned", TARGET, tmp_path / "engine", use_cache=False)


def test_what_wins_by_chance_does_not_enter(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given_times: Callable[[Times], None]
) -> None:
    """Fast when it was chosen, slow when it was measured again."""
    calls = [0]

    def rounds(programs: Sequence[Any], seconds: float) -> Any:
        calls[0] += 1
        return np.tile([1.0, 0.9, *([0.3 if calls[0] == 1 else 1.5] * (len(programs) - 2))], (20, 1))

    monkeypatch.setattr(measure, "_rounds", rounds)
    report = tune_bundle(bundle, tmp_path / "tuned", ("reuse",), target=TARGET)
    assert any(trial.accepted for trial in report.trials)
    assert report.confirmed is not None
    assert not report.confirmed.accepted
    assert not report.chosen
    assert operators(tmp_path / "tuned").count("Conv") == 8


def test_t_stitch_needs_and_uses_a_small_bundle(
    bundle: Path, tmp_path: Path, given_times: Callable[[Times], None]
) -> None:
    given_times(lambda i: 0.3)
    report = tune_bundle(bundle, tmp_path / "none", ("t-stitch",), target=TARGET)
    assert "needs a small network" in report.skipped["t-stitch"]
    report = tune_bundle(bundle, tmp_path / "tuned", ("t-stitch",), target=TARGET, small=bundle)
    # The small network is the big one: nothing is lost, so it wins.
    assert report.chosen == "t-stitch, small network in the first 1"
    assert report.trials[0].distance == pytest.approx(report.plans[0].distance)
    names = {item.name.split(".")[0] for item in onnx.load(tmp_path / "tuned/onnx/trajectory.onnx").graph.initializer}
    assert {"network0", "network1"} <= names


def test_bad_requests_leave_nothing(bundle: Path, tmp_path: Path, given_times: Callable[[Times], None]) -> None:
    given_times(lambda i: 0.3)
    with pytest.raises(UsageError, match=r"no lossy pass 'magic'.*reuse, todo"):
        tune_bundle(bundle, tmp_path / "out", ("magic",), target=TARGET)
    with pytest.raises(UsageError, match="steps"):
        tune_bundle(bundle, tmp_path / "out", ("reuse",), target=TARGET, steps=3)
    assert not (tmp_path / "out").exists()
    tune_bundle(bundle, tmp_path / "out", ("todo",), target=TARGET)
    with pytest.raises(UsageError, match="nothing to compare it with"):
        tune_bundle(tmp_path / "out", tmp_path / "again", ("reuse",), target=TARGET)
    report = json.loads((tmp_path / "out/bundle.json").read_text())["body"]["lossy"]
    assert report["chosen"] == ""
    assert report["trials"] == []
