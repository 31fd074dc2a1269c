"""TensorRT targets on the command line, on this machine as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill_rt.backends.cuda_device import cuda_devices
from distill_rt.backends.tensorrt.library import Library
from distill_rt.cli.main import main
from distill_rt.core.optional import installed

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize("devices", ["sm75", "sm89", "sm80+sm86+sm120"])
def test_compile_for_another_machine(rtx: Library, bundle: Path, devices: str, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "e.engine"
    assert (
        main(["compile", str(bundle), "--target", f"tensorrt-rtx:{devices}", "--batch", "1,3", "--out", str(out)]) == 0
    )
    said = capsys.readouterr().out
    assert f"distill-rt verify {out} --gate" in said
    assert "distill-rt generate" not in said
    assert main(["inspect", str(out), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["target"] == f"tensorrt-rtx:{devices}"
    assert data["gate"] is None
    plan = data["plans"]["network0"]
    assert plan["library"] == rtx.compiler
    assert [f"sm{number}" for number in plan["capabilities"]] == devices.split("+")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--target", "tensorrt-rtx:sm90"], 2, "--target tensorrt:sm90"),
        (["--target", "tensorrt-rtx:sm42"], 2, "no device 'sm42'"),
        (["--target", "tensorrt-rtx:sm75", "--precision", "bf16"], 4, "sm75 has no bfloat16"),
        (
            ["--target", "tensorrt-rtx:sm86+sm89", "--precision", "fp8"],
            4,
            "arithmetic (use --precision int8",
        ),
        (["--target", "openvino:cpu", "--precision", "fp8"], 4, "not in fp8"),
        (["--target", "tensorrt-rtx:sm89", "--precision", "int4"], 2, "invalid choice: 'int4'"),
    ],
)
def test_refusals_are_one_line(
    rtx: Library, bundle: Path, words: list[str], code: int, said: str, tmp_path: Path, capsys: Capture
) -> None:
    assert main(["compile", str(bundle), *words, "--out", str(tmp_path / "e")]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not (tmp_path / "e").exists()


@pytest.mark.skipif(bool(cuda_devices()[0]), reason="this machine has a GPU")
def test_an_engine_on_a_machine_without_a_gpu(rtx: Library, bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "e.engine"
    assert main(["compile", str(bundle), "--target", "tensorrt-rtx:sm89", "--out", str(out)]) == 0
    capsys.readouterr()
    for words in (["verify"], ["verify", "--gate"], ["generate", "--label", "1", "--out", str(tmp_path / "a.png")]):
        assert main([words[0], str(out), *words[1:]]) == 4
        (line,) = capsys.readouterr().err.splitlines()
        assert "runs on tensorrt-rtx:sm89: this machine has no usable GPU" in line


def test_doctor_lists_both_families(capsys: Capture) -> None:
    assert main(["doctor", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    rtx, trt = data["targets"]["tensorrt-rtx:smXX"], data["targets"]["tensorrt:smXX"]
    assert rtx["builds"] == installed("tensorrt_rtx")
    assert rtx["precisions"] == trt["precisions"] == ["fp16", "bf16", "fp32", "fp8", "int8"]
    if not data["gpus"]:
        assert (rtx["runs"], trt["runs"], trt["builds"]) == (False, False, False)
        assert all((data["no_gpu"], rtx["reason"], trt["reason"]))
