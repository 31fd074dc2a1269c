"""The commands that need no torch, on a tiny engine: what they write, what they say, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import distill_rt as drt
from distill_rt.cli import outcome
from distill_rt.cli.main import main
from distill_rt.runtime.images import make_grid, read_text

Capture = pytest.CaptureFixture[str]


def run_json(words: list[str], capsys: Capture) -> dict[str, Any]:
    assert main([*words, "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1, "one object on stdout"
    data: dict[str, Any] = json.loads(out)
    return data


def test_generate(engine: Path, tmp_path: Path, capsys: Capture) -> None:
    png = tmp_path / "new" / "out.png"
    words = ["generate", str(engine), "--label", "3", "--seed", "7", "--num-images", "5", "--steps", "4"]
    data = run_json([*words, "--guidance", "2.5", "--out", str(png)], capsys)
    assert data["files"] == [str(png)]
    assert data["seeds"] == [7, 8, 9, 10, 11]
    assert (data["steps"], data["guidance"], data["labels"]) == (4, 2.5, [3] * 5)
    with drt.load(engine) as pipe:
        expected = pipe.generate(labels=[3], seed=7, num_images=5, steps=4, guidance=2.5).images
    with Image.open(png) as image:
        pixels = np.asarray(image)[::16, ::16]
    np.testing.assert_array_equal(pixels, make_grid(expected)[..., 0])
    text = read_text(png)
    assert text["engine"] == data["engine"]
    assert text["request"]["steps"] == 4  # type: ignore[index]
    assert sorted(os.listdir(png.parent)) == ["out.png"]


def test_generate_draws_a_seed_and_says_which(engine: Path, tmp_path: Path, capsys: Capture) -> None:
    first, again = tmp_path / "a.png", tmp_path / "b.png"
    assert main(["generate", str(engine), "--label", "1", "--out", str(first)]) == 0
    said = capsys.readouterr().out
    seed = read_text(first)["seeds"][0]  # type: ignore[index]
    assert f"seed {seed}" in said
    assert main(["generate", str(engine), "--label", "1", "--seed", str(seed), "--out", str(again)]) == 0
    assert np.array_equal(np.asarray(Image.open(first)), np.asarray(Image.open(again)))


def test_generate_one_file_per_image(engine: Path, tmp_path: Path, capsys: Capture) -> None:
    words = ["generate", str(engine), "--label", "1,2,3", "--seed", "5", "--separate", "--scale", "1"]
    data = run_json([*words, "--out", str(tmp_path / "a.png")], capsys)
    assert [Path(name).name for name in data["files"]] == ["a_0.png", "a_1.png", "a_2.png"]
    assert [read_text(Path(name))["labels"] for name in data["files"]] == [[1], [2], [3]]
    assert Image.open(data["files"][0]).size == (4, 4)


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        (["--label", "1", "--steps", "7"], "steps-not-in-contract"),
        (["--label", "1", "--steps", "0"], "steps-out-of-range"),
        (["--label", "1", "--guidance", "9"], "guidance-not-in-contract"),
        (["--label", "1", "--guidance", "nan"], "guidance-type"),
        (["--label", "1", "--prompt", "a digit"], "condition-not-in-contract"),
        (["--label", "10"], "label-not-in-contract"),
        (["--label", "-1"], "label-not-in-contract"),
        ([], "label-missing"),
        (["--label", "1,2", "--num-images", "3"], "label-count"),
        (["--label", "1", "--seed", "-1"], "seed-out-of-range"),
        (["--label", "1", "--seed", str(2**64)], "seed-out-of-range"),
        (["--label", "1", "--num-images", "0"], "num-images-out-of-range"),
        (["--label", "1", "--num-images", "1000000"], "num-images-out-of-range"),
        (["--label", "1", "--scale", "100000"], "picture-too-large"),
        (["--label", "1", "--scale", str(10**30)], "picture-too-large"),
        (["--label", "1", "--num-images", "3", "--separate", "--scale", "100000"], "picture-too-large"),
        (["--label", "1", "--separate", "--columns", "2"], "bad-arguments"),
    ],
)
def test_generate_refuses_what_is_outside_of_the_contract(
    flags: list[str], code: str, engine: Path, tmp_path: Path, capsys: Capture
) -> None:
    words = ["generate", str(engine), *flags, "--out", str(tmp_path / "new" / "a.png")]
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert main([*words, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert not list(tmp_path.iterdir())


def test_generate_refuses_outputs_before_loading(engine: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "b_1.png").mkdir()
    for name, exit_code, *flags in (
        ("a.jpg", 2),
        (".png", 2),
        (".", 2),
        ("file/a.png", 5),
        ("b.png", 2, "--separate", "--num-images", "3"),
    ):
        assert main(["generate", str(engine), "--label", "1", *flags, "--out", str(tmp_path / name)]) == exit_code
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["b_1.png", "file"]


def test_compile_then_inspect_then_verify(artifacts: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    engine = tmp_path / "e.engine"
    words = ["compile", str(artifacts["bundle"]), "--target", "onnxruntime:cpu", "--batch", "1,4", "--threads", "1"]
    made = run_json([*words, "--out", str(engine)], capsys)
    assert made["batches"] == [1, 4]
    assert made == run_json(["inspect", str(engine)], capsys)
    other = tmp_path / "other.engine"
    assert main([*words, "--out", str(other)]) == 0
    assert f"use it: distill-rt generate {other} --label 0 --out images.png" in capsys.readouterr().out
    assert made["gate"]["trajectories"].keys() >= {"steps=4,guidance=2"}
    verified = run_json(["verify", str(engine)], capsys)
    assert verified["digest"] == made["digest"]
    assert {"files", "fingerprint", "this machine"} <= set(verified["verified"])
    # The output is there now.
    assert main([*words, "--out", str(engine)]) == 2
    assert "--force" in capsys.readouterr().err
    assert main([*words, "--out", str(engine), "--force"]) == 0
    text = capsys.readouterr().out
    assert f"distill-rt generate {engine}" in text


def test_compile_refuses(artifacts: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    bundle = str(artifacts["bundle"])
    out = ["--out", str(tmp_path / "e")]
    cases = [
        (["compile", bundle, "--target", "abacus:wood", *out], 2),
        (["compile", bundle, "--target", "onnxruntime:cpu", "--precision", "fp16", *out], 4),
        (["compile", bundle, "--batch", "100000", *out], 2),
        (["compile", str(tmp_path / "none"), *out], 3),
    ]
    for words, exit_code in cases:
        assert main(words) == exit_code
        assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["student", "bundle", "engine"])
def test_inspect_says_what_a_person_asks(kind: str, artifacts: dict[str, Path], capsys: Capture) -> None:
    data = run_json(["inspect", str(artifacts[kind])], capsys)
    assert data["kind"] == kind
    assert data["contract"]["default_steps"] == 2
    assert data["size_bytes"] == sum(file["size"] for file in data["files"])
    assert main(["inspect", str(artifacts[kind])]) == 0
    text = capsys.readouterr().out
    for words in ("1, 2, 4; default 2", "0 to 9", "1 to 4, default 2 (embedded)", "4 x 4 pixels", data["digest"]):
        assert words in text
    if kind == "engine":
        assert "onnxruntime:cpu" in text
        assert "bar of components" in text


def test_bench(engine: Path, tmp_path: Path, capsys: Capture) -> None:
    pytest.importorskip("matplotlib")
    plot, out = tmp_path / "new" / "latency.png", tmp_path / "new" / "report.json"
    words = ["bench", str(engine), "--requests", "12", "--warmup", "1", "--plot", str(plot), "--out", str(out)]
    data = run_json(words, capsys)
    assert json.loads(out.read_text()) == data
    assert [run["num_images"] for run in data["runs"]] == [1, 4, 16]
    for run in data["runs"]:
        latency = run["latency_ms"]
        assert 0 < latency["min"] <= latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["max"]
        assert len(run["samples_ms"]) == run["num_requests"] == 12
        assert run["overhead_ms"]["max"] < latency["max"]
        assert set(run["stages_ms"]) == {"request", "wait", "noise", "network", "table", "pixels"}
        assert run["images_per_s"] == pytest.approx(1e3 * run["num_images"] / latency["mean"])
    assert data["overhead"]["p50_ms"] == data["runs"][0]["overhead_ms"]["p50"]
    assert data["overhead"]["bar_ms"] == 0.3
    assert data["load"]["load_ms"] > 0
    assert data["peak_memory_bytes"] > 1_000_000
    with Image.open(plot) as image:
        assert image.size[0] > 400
    assert sorted(os.listdir(plot.parent)) == ["latency.png", "report.json"]
    assert main(words) == 0
    assert "images/s" in capsys.readouterr().out


def test_bench_compares(engine: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "compare.json"
    words = [
        "bench",
        str(engine),
        "--compare-modes",
        str(engine),
        "--requests",
        "3",
        "--warmup",
        "1",
        "--out",
        str(out),
    ]
    data = run_json(words, capsys)
    assert json.loads(out.read_text()) == data
    assert [(item["mode"], item["equal"]) for item in data["variants"]] == [("step", 1.0)] * 2
    assert main(words) == 0
    assert "3 of 1 images for each engine" in capsys.readouterr().out
    assert main([*words, "--num-images", "1,4"]) == 2


def test_bench_refuses(engine: Path, tmp_path: Path, capsys: Capture) -> None:
    for flags in (
        ["--plot", str(tmp_path / "a.txt")],
        ["--steps", "7"],
        ["--label", "11"],
        ["--num-images", "1,5000", "--requests", "1000000"],
        ["--seed", "-1"],
        ["--seed", "-1", "--compare-modes", str(engine)],
        ["--out", str(tmp_path), "--requests", "1000000"],
    ):
        assert main(["bench", str(engine), *flags]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    (tmp_path / "file").touch()
    assert main(["bench", str(engine), "--out", str(tmp_path / "file" / "a.json"), "--requests", "1000000"]) == 5
    assert capsys.readouterr().err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_doctor(engine: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture) -> None:
    monkeypatch.setenv("DISTILL_RT_CACHE", str(tmp_path))
    shutil.copytree(engine, tmp_path / "engines" / "abc")
    data = run_json(["doctor"], capsys)
    assert data["cache"]["engines"] == 1
    assert data["cache"]["size_bytes"] == sum(file.stat().st_size for file in engine.rglob("*"))
    assert data["targets"]["onnxruntime:cpu"] == {
        "builds": True,
        "runs": True,
        "precisions": ["fp32"],
        "reason": None,
    }
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "onnxruntime:cpu" in text
    assert str(tmp_path) in text


def test_tables_align() -> None:
    text = outcome.table(["name", "ms"], [["a", "1.5"], ["longer", "-"], ["b", "12.25"]])
    assert text.splitlines() == ["name       ms", "a         1.5", "longer      -", "b       12.25"]
    assert outcome.pairs({"a": 1, "bcd": None, "ef": "x"}) == "a   1\nef  x"
    assert [outcome.size(n) for n in (0, 1023, 1536, 5 << 20, 3 << 30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 GiB",
    ]
