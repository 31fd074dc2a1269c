"""tune and stitch from the command line: what they say, in words and in JSON."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from handmade import write_bundle
from scoped import add_scopes
from tiny_networks import make_contract, make_network

from distill_rt.cli.main import main
from distill_rt.core.spec import NetworkSpec
from distill_rt.models.student import save_student

Capture = pytest.CaptureFixture[str]
TARGET = ["--target", "onnxruntime:cpu", "--threads", "1"]


def test_tune_reports_every_trial(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_bundle(tmp_path / "bundle", "none", edit_model=add_scopes)
    monkeypatch.setattr("distill_rt.export.lossy.tune.SECONDS", 0.0)
    words = ["tune", str(bundle), "--try", "reuse,todo,ptqd", *TARGET, "--out"]
    assert main([*words, str(tmp_path / "tuned"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert [plan["name"] for plan in report["plans"]] == ["4 steps", "1 steps"]
    assert {trial["kind"] for trial in report["trials"]} == {"reuse"}
    assert all(trial["reason"] and trial["passes"][0].startswith("reuse/1(") for trial in report["trials"])
    assert set(report["skipped"]) == {"todo", "ptqd"}
    assert main(["inspect", str(tmp_path / "tuned"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["lossy"] == report
    assert main([*words, str(tmp_path / "tuned")]) == 2
    capsys.readouterr()
    assert main([*words, str(tmp_path / "tuned"), "--force"]) == 0
    text = capsys.readouterr().out
    assert "todo was not tried: no self-attention" in text
    assert "deepcache, cut above up-block 0, every 2" in text
    assert "distill-rt compile" in text


def test_an_unknown_pass_names_those_there_are(tmp_path: Path, capsys: Capture) -> None:
    bundle = write_bundle(tmp_path / "bundle", "none")
    assert main(["tune", str(bundle), "--try", "magic", "--out", str(tmp_path / "out")]) == 2
    assert "reuse, todo, ptqd, t-stitch" in capsys.readouterr().err
    words = ["tune", str(bundle), "--out", str(tmp_path / "out")]
    assert main([*words, "--try", "todo", "--stitch", str(bundle)]) == 2
    assert "t-stitch, which was not named" in capsys.readouterr().err
    assert main([*words, "--batch", "100000"]) == 2
    assert "1..1024" in capsys.readouterr().err


def test_stitch(tmp_path: Path, capsys: Capture) -> None:
    big = make_contract("mlp")
    config = {**big.networks[0].config, "width": 8}
    small = dataclasses.replace(big, networks=(NetworkSpec(kind="mlp", config=config),))
    for name, spec in (("big", big), ("small", small)):
        save_student(tmp_path / name, spec, [make_network(spec)])
    words = ["stitch", str(tmp_path / "big"), str(tmp_path / "small"), "--out", str(tmp_path / "both")]
    assert main([*words, "--first", "2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["provenance"]["first"] == 2
    assert main([*words, "--first", "4", "--force"]) == 2
    assert "no plan that both students have" in capsys.readouterr().err
