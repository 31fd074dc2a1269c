"""Which graphs OpenVINO compiles without its generator of fused kernels: many operations on small tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from distill_rt.backends import openvino_graph
from distill_rt.backends.base import CompileOptions
from distill_rt.backends.openvino import OpenVINO
from distill_rt.core.artifacts import Component
from distill_rt.core.spec import TensorSpec

ov = pytest.importorskip("openvino")

WIDTH = 64
CHAIN = """<ir_version: 10, opset_import: ["" : 21]>
chain (float[B, 64] x) => (float[B, 64] y)
<float[64, 64] weight = {{{weight}}}>
{{
    a = MatMul(x, weight)
    b = Sigmoid(a)
    c = Mul(a, x)
    d = Add(c, b)
    y = Tanh(d)
}}"""
ATTENTION = """<ir_version: 10, opset_import: ["" : 23]>
attention (float[B, 2, 1024, 4] q, float[B, 2, 1024, 4] k) => (float[B, 2, 1024, 4] y)
{
    y = Attention(q, k, k)
}"""


def graph(directory: Path, text: str) -> Path:
    ir.save(ir.from_onnx_text(text), directory / "graph.onnx")
    return directory / "graph.onnx"


def chain(directory: Path) -> Path:
    numbers = ", ".join(f"{x:.3f}" for x in np.random.default_rng(0).standard_normal(WIDTH * WIDTH) / 8)
    return graph(directory, CHAIN.format(weight=numbers))


@pytest.mark.parametrize(
    ("at_least", "batch", "fused"), [(2, 3, False), (100, 3, True), (2, 1 << 15, True)], ids=["many", "few", "large"]
)
def test_kernels_are_fused_where_they_are_few_or_large(
    at_least: int, batch: int, fused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_graph, "MANY_OPERATIONS", at_least)
    inputs = (TensorSpec(name="x", dtype="float32", shape=("B", WIDTH)),)
    outputs = (TensorSpec(name="y", dtype="float32", shape=("B", WIDTH)),)
    component = Component(file="graph.onnx", inputs=inputs, outputs=outputs, opset=21, initializers={})
    options = CompileOptions(precision="fp32", num_threads=1)
    files = OpenVINO().compile(chain(tmp_path), component, [batch], tmp_path, "graph", options)
    program = OpenVINO().load(tmp_path, files, inputs, outputs, batch, options)
    kinds = {
        str(node.get_rt_info()["layerType"].value)
        for node in program._request.get_compiled_model().get_runtime_model().get_ops()
    }
    assert ("Subgraph" in kinds) == fused
    x = np.random.default_rng(1).standard_normal((batch, WIDTH)).astype(np.float32)
    program.inputs["x"][:] = x
    program.run()
    reference = ov.Core().compile_model(str(tmp_path / "graph.onnx"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(program.outputs["y"], reference(x)[0], atol=1e-5)


@pytest.mark.parametrize(("limit", "small"), [(1 << 21, True), ((1 << 21) - 1, False)])
def test_scores_of_attention_count(limit: int, small: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 heads of 1024 queries and as many keys; everything else is small."""
    monkeypatch.setattr(openvino_graph, "MANY_OPERATIONS", 0)
    monkeypatch.setattr(openvino_graph, "CACHED_ELEMENTS", limit)
    model = ov.Core().read_model(str(graph(tmp_path, ATTENTION)))
    model.reshape({name: [1, 2, 1024, 4] for name in ("q", "k")})
    assert openvino_graph.has_many_small_operations(model) == small


def test_weights_do_not_count_and_unknown_sizes_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_graph, "MANY_OPERATIONS", 0)
    monkeypatch.setattr(openvino_graph, "CACHED_ELEMENTS", WIDTH * WIDTH - 1)
    model = ov.Core().read_model(str(chain(tmp_path)))
    assert not openvino_graph.has_many_small_operations(model)  # the batch is free
    model.reshape({"x": [1, WIDTH]})
    assert openvino_graph.has_many_small_operations(model)
