"""What OpenVINO keeps in float32 in a bfloat16 engine: what is computed from times and noise, and nothing else.

Every tensor that is kept becomes a result of the graph, which is written out in float32 on every call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from numpy.typing import NDArray

from distill_rt.backends.base import CompileOptions
from distill_rt.backends.openvino import BF16_INSTRUCTION_SETS, OpenVINO
from distill_rt.backends.processor import instruction_sets
from distill_rt.core.artifacts import Component
from distill_rt.core.spec import TensorSpec

ov = pytest.importorskip("openvino")
pytestmark = pytest.mark.skipif(not BF16_INSTRUCTION_SETS & instruction_sets(), reason="this processor has no bfloat16")

Array = NDArray[Any]
GRAPH = """<ir_version: 10, opset_import: ["" : 21]>
network (float[B, 2, 4, 4] {image}, float[B] time) => (float[B, 16, 2] prediction)
<float[1, 8] waves = {{{waves}}}, float[8, 2] embed = {{{embed}}}, float[2, 2, 1, 1] filter = {{{filter}}},
 float[2, 2] project = {{{project}}}, int64[2] column = {{-1, 1}},
 int64[4] pixel = {{-1, 2, 1, 1}}, int64[2] flat = {{2, 16}}>
{{
    batch = Shape <start = 0, end = 1> ({shape_of})
    shape = Concat <axis = 0> (batch, flat)
    t = Reshape(time, column)
    angles = MatMul(t, waves)
    sines = Sin(angles)
    embedding = MatMul(sines, embed)
    shift = Reshape(embedding, pixel)
    wide = Conv({image}, filter)
    shifted = Add(wide, shift)
    rows = Reshape(shifted, shape)
    tokens = Transpose <perm = [0, 2, 1]> (rows)
    prediction = MatMul(tokens, project)
}}"""


@pytest.mark.parametrize("image", ["sample", "noise"])
@pytest.mark.parametrize("shape_of", ["time", "image"])
def test_a_shape_carries_no_precision(image: str, shape_of: str, tmp_path: Path) -> None:
    """Reshapes by the batch of the times or the noise are what exported attention is full of."""
    rng = np.random.default_rng(0)
    sizes = {"waves": 8, "embed": 16, "filter": 4, "project": 4}
    weights = {name: ", ".join(f"{x:.4f}" for x in rng.uniform(0.1, 1, size)) for name, size in sizes.items()}
    text = GRAPH.format(image=image, shape_of=image if shape_of == "image" else "time", **weights)
    ir.save(ir.from_onnx_text(text), tmp_path / "network.onnx")
    inputs = (
        TensorSpec(name=image, dtype="float32", shape=("B", 2, 4, 4)),
        TensorSpec(name="time", dtype="float32", shape=("B",)),
    )
    outputs = (TensorSpec(name="prediction", dtype="float32", shape=("B", 16, 2)),)
    component = Component(file="network.onnx", inputs=inputs, outputs=outputs, opset=21, initializers={})
    options = CompileOptions(precision="bf16", num_threads=1)
    (file,) = OpenVINO().compile(tmp_path / "network.onnx", component, [1], tmp_path, "network", options)
    blob = np.fromfile(tmp_path / file, np.uint8)
    compiled = ov.Core().import_model(ov.Tensor(blob, shared_memory=True), "CPU", {})
    kept = [tuple(result.shape) for result in compiled.outputs if "prediction" not in result.names]
    # The sines, before the first product with weights; noise itself, of a trajectory.
    assert (1, 16, 2) not in kept
    assert (1, 2, 16) not in kept
    assert len(kept) <= 2 + (image == "noise"), kept
