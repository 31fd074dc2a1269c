"""bfloat16 engines store large weights in half the bytes, and exactly what must not be rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save

from distill_rt.backends import processor
from distill_rt.backends.base import CompileOptions
from distill_rt.backends.openvino import BF16_INSTRUCTION_SETS, OpenVINO
from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.spec import TensorSpec

pytestmark = pytest.mark.skipif(
    not BF16_INSTRUCTION_SETS & processor.instruction_sets(), reason="no bfloat16 on this processor"
)
Array = NDArray[Any]

WIDTH = 256
INPUTS = (TensorSpec(name="x", dtype="float32", shape=("B", WIDTH)),)
OUTPUTS = (TensorSpec(name="y", dtype="float32", shape=("B", WIDTH)),)
COMPONENT = Component(file="net.onnx", inputs=INPUTS, outputs=OUTPUTS, opset=21, initializers={})


def compiled(directory: Path, first: Array, second: Array, precision: Precision) -> tuple[int, Array, Array]:
    """Bytes of the engine, its output and the exact one for ``y = x @ first @ second``."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "first"], ["h"]), helper.make_node("MatMul", ["h", "second"], ["y"])],
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["B", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", WIDTH])],
        [numpy_helper.from_array(first, "first"), numpy_helper.from_array(second, "second")],
    )
    path = directory / "net.onnx"
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))
    backend, options = OpenVINO(), CompileOptions(precision=precision, num_threads=1)
    files = backend.compile(path, COMPONENT, [1], directory, f"net.{precision}", options)
    program = backend.load(directory, files, INPUTS, OUTPUTS, 1, options)
    x = np.random.default_rng(1).standard_normal((1, WIDTH)).astype(np.float32)
    program.inputs["x"][:] = x
    program.run()
    exact = x.astype(np.float64) @ first.astype(np.float64) @ second.astype(np.float64)
    assert {file.name for file in directory.iterdir()} >= {*files}
    return (directory / files[0]).stat().st_size, program.outputs["y"].copy(), exact


def weights(scale: float = 1.0) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((2, WIDTH, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)
    return first * np.float32(scale), second / np.float32(scale)


def distance(got: Array, want: Array) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def test_bf16_engines_have_half_the_weights(tmp_path: Path) -> None:
    full, got_fp32, want = compiled(tmp_path, *weights(), "fp32")
    half, got_bf16, _ = compiled(tmp_path, *weights(), "bf16")
    assert half < 0.55 * full
    assert distance(got_fp32, want) < 1e-5
    assert distance(got_bf16, want) < 1e-2
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]  # nothing of the way there is left


@pytest.mark.parametrize("scale", [1e-5, 1e5, 1e7])
def test_weights_outside_of_the_range_of_float16_stay(tmp_path: Path, scale: float) -> None:
    _, got, want = compiled(tmp_path, *weights(scale), "bf16")
    assert distance(got, want) < 1e-2
