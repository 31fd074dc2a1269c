"""compile --precision int8 for processors: step and trajectory engines of a real network, through the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tensorrt_networks import digits_student

import distill_rt as drt
from distill_rt.core.errors import TargetError
from distill_rt.export import compile_bundle, export_student

pytest.importorskip("nncf")
pytest.importorskip("openvino")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_student(tmp_path_factory.mktemp("int8"))


@pytest.mark.parametrize("mode", ["step", "trajectory"])
def test_an_int8_engine_is_the_student(student: Path, tmp_path: Path, mode: str) -> None:
    bundle = export_student(student, tmp_path / "bundle", mode)  # type: ignore[arg-type]
    exact = compile_bundle(bundle, "openvino:cpu", tmp_path / "fp32", num_threads=1, use_cache=False)
    small = compile_bundle(bundle, "openvino:cpu", tmp_path / "int8", precision="int8", num_threads=1, use_cache=False)
    with drt.load(exact) as reference, drt.load(small) as pipeline:
        body = pipeline.manifest
        assert body.precision == "int8"
        assert body.gate is not None
        (name,) = body.components
        assert body.options["quantization"][name]["rows"] >= 16
        assert body.fingerprint_parts["quantization"]["tool"].startswith("nncf ")
        request = {"labels": [3, 1], "seed": 5}
        want, got = reference.generate(**request).images, pipeline.generate(**request).images
    assert not np.array_equal(got, want)  # something was quantised
    assert np.abs(got.astype(int) - want.astype(int)).mean() < 8
    weights = [sum(file.stat().st_size for file in path.glob("*.blob")) for path in (exact, small)]
    assert weights[1] < 0.7 * weights[0]


def test_other_backends_refuse_it(student: Path, tmp_path: Path) -> None:
    bundle = export_student(student, tmp_path / "bundle")
    with pytest.raises(TargetError, match="computes in fp32 only, not in int8"):
        compile_bundle(bundle, "onnxruntime:cpu", tmp_path / "engine", precision="int8")
