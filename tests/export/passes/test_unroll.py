"""A trajectory graph gives the images of step mode: every kind of row, every kind of guidance, at two batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from handmade import GuidanceMode, make_ir, make_model, make_spec
from numpy.typing import NDArray
from plans import TABLES

from distill_rt.core.errors import ArtifactError
from distill_rt.core.noise import unit_noise
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.core.table import StepTable
from distill_rt.export.passes.unroll import unroll
from distill_rt.export.trajectory import run_plan
from distill_rt.export.trajectory_graph import trajectory_model
from distill_rt.kernels.reference import to_uint8

Array = NDArray[Any]

STEPS = 4
GUIDANCE = {1: (2.5,), 3: (1.0, 2.0, 4.0)}
"""Batch -> a scale per image."""


def make_student(
    table: StepTable, guidance: GuidanceMode = "none", *, label: bool = True, rescale: float = 0.0
) -> StudentSpec:
    spec = make_spec(guidance)
    changes: dict[str, Any] = {"plans": {STEPS: table}, "default_steps": STEPS}
    if rescale:
        changes["guidance"] = dataclasses.replace(spec.guidance, rescale=rescale)
    if not label:
        changes["condition"] = Condition()
    return dataclasses.replace(spec, **changes)


def session(model: ir.Model | onnx.ModelProto) -> ort.InferenceSession:
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def feeds(
    spec: StudentSpec, seeds: Sequence[int], labels: Sequence[int], guidance: Sequence[float]
) -> dict[str, Array]:
    values: dict[str, Array] = {"label": np.array(labels, np.int64), "guidance": np.array(guidance, np.float32)}
    ((inputs, _),) = spec.trajectory(STEPS).values()
    for tensor in inputs:
        if tensor.name.startswith("noise"):
            stream = int(tensor.name.removeprefix("noise").removeprefix("_") or 0)
            values[tensor.name] = unit_noise(seeds, spec.sample_shape, stream)
    return {tensor.name: values[tensor.name] for tensor in inputs}


def assert_equal_to_step_mode(spec: StudentSpec, networks: Sequence[onnx.ModelProto], trajectory: ir.Model) -> None:
    proto = ir.to_proto(trajectory)
    onnx.checker.check_model(proto, full_check=True)
    steps, whole = [session(network) for network in networks], session(trajectory)

    def evaluate(net_id: int, inputs: Mapping[str, Array]) -> Array:
        output: Array = steps[net_id].run(None, dict(inputs))[0]
        return output

    for num_images, guidance in GUIDANCE.items():
        seeds, labels = range(7, 7 + num_images), [i % 3 for i in range(num_images)]
        want = run_plan(
            spec,
            evaluate,
            steps=STEPS,
            guidance=np.array(guidance, np.float32),
            seeds=seeds,
            labels=None if spec.condition.kind == "none" else labels,
        )
        assert np.abs(want).max() > 0.1
        (got,) = whole.run(None, feeds(spec, seeds, labels, guidance))
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("guidance", ["none", "embedded", "cfg"])
def test_equal_to_step_mode(name: str, guidance: GuidanceMode) -> None:
    spec = make_student(TABLES[name], guidance)
    network = make_model(spec)
    model = make_ir(network)
    assert_equal_to_step_mode(spec, [network], unroll({"network0": model}, spec, STEPS, pixels=False))
    assert_equal_to_step_mode(spec, [network], trajectory_model({"network0": model}, spec, STEPS, pixels=False))


def test_rescaled_guidance() -> None:
    spec = make_student(TABLES["ddim"], "cfg", rescale=0.7)
    network = make_model(spec)
    assert_equal_to_step_mode(
        spec, [network], trajectory_model({"network0": make_ir(network)}, spec, STEPS, pixels=False)
    )


def test_without_a_condition() -> None:
    spec = make_student(TABLES["lcm"], label=False)
    network = make_model(spec)
    ((inputs, _),) = spec.trajectory(STEPS).values()
    assert [tensor.name for tensor in inputs] == ["noise", "noise_1", "noise_2", "noise_3"]
    assert_equal_to_step_mode(
        spec, [network], trajectory_model({"network0": make_ir(network)}, spec, STEPS, pixels=False)
    )


def test_rows_of_several_networks() -> None:
    """As T-Stitch runs them: a small network for the first steps, a large one for the last."""
    spec = make_student(TABLES["tcd"])
    rows = tuple(dataclasses.replace(row, net_id=int(i > 1)) for i, row in enumerate(spec.plans[STEPS].rows))
    spec = dataclasses.replace(
        spec,
        plans={STEPS: dataclasses.replace(spec.plans[STEPS], rows=rows)},
        networks=(NetworkSpec(kind="handmade"),) * 2,
    )
    networks = [make_model(spec, seed=seed) for seed in (0, 1)]
    model = trajectory_model(
        {f"network{i}": make_ir(network) for i, network in enumerate(networks)}, spec, STEPS, pixels=False
    )
    assert {name.split(".")[0] for name in model.graph.initializers if "conv" in name} == {"network0", "network1"}
    assert_equal_to_step_mode(spec, networks, model)


@pytest.mark.parametrize("guidance", ["none", "embedded", "cfg"])
def test_inputs_outputs_and_pixels(guidance: GuidanceMode) -> None:
    spec = make_student(TABLES["lcm"], guidance)
    step = make_ir(make_model(spec))
    model = trajectory_model({"network0": step}, spec, STEPS)
    ((inputs, outputs),) = spec.trajectory(STEPS).values()
    assert [value.name for value in model.graph.inputs] == [tensor.name for tensor in inputs]
    for value, tensor in zip([*model.graph.inputs, *model.graph.outputs], [*inputs, *outputs], strict=True):
        assert value.shape is not None
        assert tuple(dim if isinstance(dim, int) else str(dim) for dim in value.shape) == tensor.shape
    values = feeds(spec, (1, 2), (0, 2), (1.0, 3.0))
    (x_BCHW,) = session(trajectory_model({"network0": step}, spec, STEPS, pixels=False)).run(None, values)
    (images,) = session(model).run(None, values)
    np.testing.assert_array_equal(images, to_uint8(x_BCHW))


def test_pixels_of_every_value() -> None:
    """Ties, both ends, and what is not a number."""
    x = np.array([-2.0, -1.0, -0.9960785, 0.0, 0.99607843, 1.0, 7.0, np.nan, np.inf, -np.inf] + [0.0] * 6, np.float32)
    table = StepTable(rows=(TABLES["every column"].rows[4],))
    spec = dataclasses.replace(make_student(table), guidance=Guidance())
    noise = (x / np.float32(table.rows[0].r)).reshape(1, 1, 4, 4)
    model = trajectory_model({"network0": make_ir(make_model(spec))}, spec, STEPS)
    (images,) = session(model).run(None, {"noise": noise, "label": np.array([0])})
    np.testing.assert_array_equal(images, to_uint8(np.float32(table.rows[0].r) * noise))


def test_weights_exist_once_and_the_network_stays_as_it_is() -> None:
    spec = make_student(TABLES["ddim"])
    step = make_ir(make_model(spec))
    before = ir.to_proto(step).SerializeToString()
    model = unroll({"network0": step}, spec, STEPS)
    assert ir.to_proto(step).SerializeToString() == before
    for name, value in step.graph.initializers.items():
        assert model.graph.initializers[f"network0.{name}"].const_value is value.const_value
    assert sum(node.op_type == "Conv" for node in model.graph) == 2 * STEPS


def test_branches_are_refused() -> None:
    spec = make_student(TABLES["ddim"])
    step = make_ir(make_model(spec))
    last = list(step.graph)[-1]
    body = ir.Graph([], [], nodes=[], name="body")
    step.graph.insert_before(last, ir.node("If", [last.inputs[0]], {"then_branch": body}, name="choice"))
    with pytest.raises(ArtifactError, match=r"If \(choice\)"):
        unroll({"network0": step}, spec, STEPS)
