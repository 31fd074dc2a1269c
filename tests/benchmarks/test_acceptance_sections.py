"""Every section that can runs in a dry run: uninstalled, without the native module, in Triton's interpreter, at tiny sizes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gpu_acceptance
import pytest
from acceptance import bits, checkout, device, gpu_tests
from acceptance.report import Recorder, Skip
from acceptance.sections import SECTIONS

from distill_rt.core import optional

needs_kernels = pytest.mark.skipif(
    not (optional.installed("triton") and optional.installed("torch")), reason="needs triton and torch"
)

DRY = {
    "environment": set(),
    "ceilings": set(),
    "accuracy": {"error_over_bound"},
    "speed": {"table_row_1gib_over_copy", "table_row_batch1_over_null"},
    "bits": {"cpu_noise_golden", "triton_noise_golden", "pack_choice", "pack_arguments"},
    "graph": {"states_from_run_table", "inputs_change_without_capture"},
    "engine-inductor": {
        "seed_label_guidance_change", "same_request_same_bits", "previews_same_bits", "graph_equals_eager",
        "threads_same_bits", "first_request_ratio",
    },
}  # fmt: skip
"""Section -> bars that its dry run lists itself."""


@needs_kernels
@pytest.mark.parametrize("name", DRY)
def test_dry_run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "r.json"
    status = gpu_acceptance.main(["--cpu", "--out", str(out), "--only", name])
    written = json.loads(out.read_text())
    section = written["sections"][name]
    assert (status, section["status"]) == (0, "passed"), section
    assert {bar["name"] for bar in section["bars"]} == DRY[name]
    assert {bar["name"] for bar in written["bars"]} == DRY[name] | set(SECTIONS[name].bars)
    assert written["dry"] is True
    assert written["device"] == "cpu (dry run)"
    speed = {"table_row_1gib_over_copy", "table_row_batch1_over_null", "first_request_ratio"}
    for bar in written["bars"]:
        judged = bar["name"] in DRY[name] - speed
        assert bar["passed"] is (True if judged else None), bar
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["ok"] is True


@needs_kernels
def test_sections_that_need_a_gpu_say_so(tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    assert gpu_acceptance.main(["--cpu", "--out", str(out), "--only", "engine-tensorrt"]) == 0
    section = json.loads(out.read_text())["sections"]["engine-tensorrt"]
    assert section["status"] == "skipped"
    assert "needs a GPU" in section["reason"]


def test_an_absent_package_skips(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(optional, "installed", lambda name: name != "triton")
    with pytest.raises(Skip, match="'triton' is not installed"):
        device.open_device(Recorder(tmp_path / "s.json", dry=True, seconds=1))


def test_the_package_is_found_without_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of links is enough, and without a native module the reference takes over."""
    monkeypatch.setattr(checkout, "native_module", lambda root: None)
    path = checkout.link_package(tmp_path / "path")
    code = (
        "import distill_rt, distill_rt.training, acceptance.sections\n"
        "from distill_rt import kernels\n"
        "print(distill_rt.__file__, kernels.available_implementations(), kernels.unit_noise([1], (2,)).shape)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True,
        env=gpu_acceptance._environment(path, dry=True), check=False,
    )  # fmt: skip
    assert done.stdout.split(" ", 1) == [str(path / "distill_rt/__init__.py"), "('reference',) (1, 2)\n"], done.stderr


def test_a_native_module_older_than_its_sources_is_left_alone(tmp_path: Path) -> None:
    sources, build = tmp_path / "kernels/native", tmp_path / "build/any"
    sources.mkdir(parents=True)
    build.mkdir(parents=True)
    source, module = sources / "a.cpp", build / f"_native{checkout.importlib.machinery.EXTENSION_SUFFIXES[0]}"
    source.touch()
    assert checkout.native_module(tmp_path) is None
    module.touch()
    (build / "_native.other-python.so").touch()
    assert checkout.native_module(tmp_path) == module
    later = module.stat().st_mtime + 10
    import os

    os.utime(source, (later, later))
    assert checkout.native_module(tmp_path) is None


def test_the_golden_hashes_are_those_of_the_noise_tests() -> None:
    text = (checkout.ROOT / "tests/core/test_noise.py").read_text()
    for *_, digest in bits.GOLDEN.values():
        assert digest in text
    assert bits.wrong_hashes(bits.cpu_noise) == []
    assert bits.wrong_hashes(lambda seeds, shape, stream: bits.cpu_noise(seeds, shape, stream + 1)) == list(bits.GOLDEN)


def test_same_bits() -> None:
    torch = pytest.importorskip("torch")
    a = torch.tensor([0.0, 1.0])
    assert bits.same_bits([a, a.half()], [a.clone(), a.half()])
    assert not bits.same_bits([a], [torch.tensor([-0.0, 1.0])])
    nothing = torch.full((2,), float("nan"))
    assert not bits.same_bits([nothing], [nothing])  # both unwritten


def test_the_tests_section_counts(tmp_path: Path) -> None:
    from xml.etree import ElementTree

    assert any(path.name == "test_triton_kernels.py" for path in gpu_tests.marked_files(checkout.ROOT / "tests"))
    file = tmp_path / "t.xml"
    file.write_text(
        '<testsuites><testsuite><testcase classname="a" name="x"/><testcase classname="a" name="y"><failure/></testcase>'
        '<testcase classname="a" name="z"><skipped/></testcase><testcase classname="b" name="e"><error/></testcase>'
        "</testsuite></testsuites>"
    )
    counts, failed = gpu_tests.summary(ElementTree.parse(file))
    assert counts == {"tests": 4, "skipped": 1, "failed": 2}
    assert failed == ["a::y", "b::e"]


def test_the_hand_made_network_is_its_graph() -> None:
    """The torch module and the ONNX nodes compute the same, and every value has a shape, as exported graphs have."""
    torch = pytest.importorskip("torch")
    onnx = pytest.importorskip("onnx")
    from acceptance.bundle import make_model, make_network, make_spec
    from onnx.reference import ReferenceEvaluator

    network = make_network(dry=True)
    spec = make_spec(network.sample_shape)
    model, parameters = make_model(spec, network)
    onnx.checker.check_model(model, full_check=False)
    assert set(parameters) == {name for name, _ in network.named_parameters()}
    shaped = {value.name for value in [*model.graph.value_info, *model.graph.output]}
    assert {name for node in model.graph.node for name in node.output} <= shaped
    generator = torch.Generator().manual_seed(0)
    inputs: dict[str, Any] = {
        "sample": torch.randn((3, *network.sample_shape), generator=generator),
        "time": torch.tensor([999.0, 250.0, 3.0]),
        "label": torch.tensor([1, 10, 4]),
    }
    wanted = network(**inputs)
    (got,) = ReferenceEvaluator(model).run(None, {name: value.numpy() for name, value in inputs.items()})
    torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-4)
    for name, other in (
        ("time", inputs["time"] + 1),
        ("label", inputs["label"] - 1),
        ("sample", inputs["sample"] * 1.1),
    ):
        assert not torch.allclose(network(**{**inputs, name: other}), wanted, atol=1e-3), f"{name} changes nothing"
