"""In low precision the networks of a trajectory lose bits, and the step table between them does not."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from handmade import make_ir, make_model, make_spec
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

from distill_rt.backends.base import CompileOptions
from distill_rt.backends.openvino import BF16_INSTRUCTION_SETS, OpenVINO
from distill_rt.backends.processor import instruction_sets
from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.noise import unit_noise
from distill_rt.core.spec import Decoder, NetworkSpec, StudentSpec
from distill_rt.core.table import NO_NETWORK, Row, StepTable
from distill_rt.export.precision import typed_graph
from distill_rt.export.trajectory_graph import trajectory_model

STEPS = 4
CANCELLING = StepTable(
    init_scale=1.0,
    rows=(
        Row(net_id=NO_NETWORK, r=2000.0, set_anchor=True),
        Row(time=500.0, c_in=0.001, r=1.0, g=1e-3),
        Row(
            net_id=NO_NETWORK, r=1.0, k=-1999.5
        ),  # what is left is half of the noise: bfloat16 would have lost all of it
    ),
)


def decoded() -> tuple[StudentSpec, ir.Model]:
    """A trajectory that ends in a decoder (a convolution that copies), so that its states are not the tail of the graph."""
    decoder = Decoder(network=NetworkSpec(kind="copy"), image_shape=(1, 4, 4))
    spec = dataclasses.replace(make_spec("none"), plans={STEPS: CANCELLING}, default_steps=STEPS, decoder=decoder)
    copy = ir.from_onnx_text(
        """<ir_version: 10, opset_import: ["" : 21]>
        copy (float[B, 1, 4, 4] latent) => (float[B, 1, 4, 4] image) <float[1, 1, 1, 1] weight = {1.0}> {
            image = Conv(latent, weight)
        }"""
    )
    return spec, trajectory_model({"network0": make_ir(make_model(spec)), "decoder": copy}, spec, STEPS)


def component(spec: StudentSpec) -> Component:
    ((inputs, outputs),) = spec.trajectory(STEPS).values()
    return Component(file="trajectory.onnx", inputs=inputs, outputs=outputs, opset=21, initializers={})


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudentSpec, Path]:
    spec, model = decoded()
    path = tmp_path_factory.mktemp("precision") / "trajectory.onnx"
    ir.save(model, path)
    return spec, path


def test_typed_graphs(graph: tuple[StudentSpec, Path], tmp_path: Path) -> None:
    spec, path = graph
    precision: Precision = "fp16"  # 2000 * noise is within its range, half of the noise behind it is not
    lowered = onnx.load(typed_graph(path, component(spec), precision, tmp_path / "low.onnx"))
    assert any(item.data_type == TensorProto.FLOAT16 for item in lowered.graph.initializer)
    feeds = {"noise": unit_noise([1, 2], spec.sample_shape, 0), "label": np.array([0, 1])}
    (want,), (got,) = (ReferenceEvaluator(model).run(None, feeds) for model in (onnx.load(path), lowered))
    assert want.std() > 20
    assert np.abs(want.astype(int) - got).max() <= 1


@pytest.mark.skipif(not BF16_INSTRUCTION_SETS & instruction_sets(), reason="this processor has no bfloat16")
def test_openvino(graph: tuple[StudentSpec, Path], tmp_path: Path) -> None:
    spec, path = graph
    part, backend = component(spec), OpenVINO()
    feeds = {"noise": unit_noise([1, 2], spec.sample_shape, 0), "label": np.array([0, 1])}
    (want,) = ReferenceEvaluator(onnx.load(path)).run(None, feeds)
    options = CompileOptions(precision="bf16", num_threads=1)
    files = backend.compile(path, part, [2], tmp_path, "low", options)
    program = backend.load(tmp_path, files, part.inputs, part.outputs, 2, options)
    for name, value in feeds.items():
        program.inputs[name][:] = value
    program.run()
    assert np.abs(want.astype(int) - program.outputs["images"]).max() <= 1
