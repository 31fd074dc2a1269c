"""float32 graphs in half precision: what changes its type, what must not, and what the result computes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from handmade import make_model, make_spec
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.errors import TargetError
from distill_rt.core.spec import TensorSpec
from distill_rt.export.bundle import open_bundle
from distill_rt.export.distance import distance, typical_norm
from distill_rt.export.golden import load_golden
from distill_rt.export.precision import typed_graph

Array = NDArray[Any]
HALVES: tuple[Precision, ...] = ("fp16", "bf16")
NUMBERS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def component(inputs: Sequence[tuple[str, tuple[int | str, ...]]], weights: Sequence[str] = ()) -> Component:
    specs = tuple(TensorSpec(name=name, dtype="float32", shape=shape) for name, shape in inputs)
    return Component(
        file="g.onnx", inputs=specs, outputs=specs[:1], opset=21, initializers={name: name for name in weights}
    )


def lower(
    tmp_path: Path,
    nodes: list[Any],
    initializers: dict[str, Array],
    precision: Precision = "fp16",
    *,
    inputs: Sequence[tuple[str, tuple[int | str, ...]]] = (("x", ("B", 8)),),
    weights: Sequence[str] = (),
) -> onnx.ModelProto:
    """A small graph with the output y, of the rank of its first input, lowered."""
    y_shape = [f"dim{i}" for i in range(len(inputs[0][1]))]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y_shape)],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    source, destination = tmp_path / "g.onnx", tmp_path / "low.onnx"
    onnx.save(model, str(source))
    made = typed_graph(source, component(inputs, weights), precision, destination)
    lowered = onnx.load(str(made))
    if precision == "fp16":  # ONNX's checker knows no bfloat16 convolution before opset 22
        onnx.checker.check_model(lowered, full_check=True)
    return lowered


def types(model: onnx.ModelProto) -> dict[str, int]:
    """Initializers by element type."""
    return {item.name: item.data_type for item in model.graph.initializer}


def run(model: onnx.ModelProto, **inputs: Array) -> Array:
    output: Array = ort.InferenceSession(model.SerializeToString()).run(None, inputs)[0]
    return output


def test_float32_is_the_graph_itself(tmp_path: Path) -> None:
    assert typed_graph(tmp_path / "g.onnx", component([]), "fp32", tmp_path / "x.onnx") == tmp_path / "g.onnx"


def test_the_lowered_graph_is_the_student_within_the_bar_of_its_precision(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    part = opened.body.components["network0"]
    low = typed_graph(opened.directory / part.file, part, "fp16", tmp_path / "low.onnx")
    golden = load_golden(opened.directory / opened.body.golden).components["network0"]
    got = run(onnx.load(str(low)), **golden.inputs)
    want = golden.outputs["prediction"]
    assert got.dtype == np.float32
    assert 0 < distance(got, want, typical_norm(want)).relative_l2 < 2e-3


@pytest.mark.parametrize("precision", HALVES)
def test_weights_keep_their_names_and_change_their_type(bundle: Path, tmp_path: Path, precision: Precision) -> None:
    opened = open_bundle(bundle)
    part = opened.body.components["network0"]
    model = onnx.load(str(typed_graph(opened.directory / part.file, part, precision, tmp_path / "low.onnx")))
    found = types(model)
    assert {found[name] for name in part.initializers.values()} == {NUMBERS[precision]}
    assert [value.name for value in model.graph.input] == [tensor.name for tensor in part.inputs]
    kinds = {value.name: value.type.tensor_type.elem_type for value in [*model.graph.input, *model.graph.output]}
    assert {kinds["sample"], kinds["time"], kinds["prediction"]} == {TensorProto.FLOAT}
    assert kinds["label"] == TensorProto.INT64


@pytest.mark.parametrize("precision", HALVES)
def test_scalars_stay_exact_up_to_the_first_product(tmp_path: Path, precision: Precision) -> None:
    """Sine of 999 * frequency: float16 rounds the product, bfloat16 even the 999."""
    spec = make_spec()
    source = tmp_path / "g.onnx"
    onnx.save(make_model(spec), str(source))
    part = component([(tensor.name, tensor.shape) for tensor in spec.network_inputs() if tensor.name != "label"])
    model = onnx.load(str(typed_graph(source, part, precision, tmp_path / "low.onnx")))
    assert types(model)["frequencies"] == TensorProto.FLOAT
    nodes = {node.output[0]: node for node in model.graph.node}
    assert nodes["sin"].input[0] == "angle"
    assert nodes["angle"].input[0] == "time_B1"
    features = nodes[nodes["vector"].input[0]]
    assert (features.op_type, list(features.input)) == ("Cast", ["features"])


def test_an_output_behind_scalars_alone_is_exact(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["t", "k"], ["h"]), helper.make_node("Sin", ["h"], ["y"])]
    model = lower(tmp_path, nodes, {"k": np.float32(3.3)}, inputs=[("t", ("B",))])
    assert types(model) == {"k": TensorProto.FLOAT}
    times = np.array([999.0, 123.4], np.float32)
    assert np.abs(run(model, t=times) - np.sin(np.float32(3.3) * times)).max() < 1e-5


def test_a_weight_that_both_parts_read_is_cast_for_one(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Mul", ["t", "w"], ["a"]),
        helper.make_node("Mul", ["x", "w"], ["b"]),
        helper.make_node("MatMul", ["b", "m"], ["c"]),
        helper.make_node("ReduceSum", ["a"], ["s"], keepdims=0),
        helper.make_node("Add", ["c", "s"], ["y"]),
    ]
    inputs = [("x", ("B", 8)), ("t", ("B",))]
    weights = {"w": np.float32(0.3), "m": np.eye(8, dtype=np.float32)}
    model = lower(tmp_path, nodes, weights, inputs=inputs)
    assert types(model) == {"w": TensorProto.FLOAT, "m": TensorProto.FLOAT16}
    x, t = np.ones((1, 8), np.float32), np.ones(1, np.float32)
    assert np.allclose(run(model, x=x, t=t), 0.6, atol=1e-3)


@pytest.mark.parametrize("precision", HALVES)
def test_inputs_that_must_be_float32_stay_so(tmp_path: Path, precision: Precision) -> None:
    """The scales of Resize have no other type."""
    nodes = [helper.make_node("Resize", ["x", "", "scales"], ["y"], mode="nearest")]
    scales = np.array([1, 1, 2, 2], np.float32)
    model = lower(tmp_path, nodes, {"scales": scales}, precision, inputs=[("x", ("B", 1, 4, 4))])
    assert types(model) == {"scales": TensorProto.FLOAT}
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    assert resize.input[0].startswith("x/as_")
    assert resize.output[0] == f"y/{precision}"


def test_shapes_and_indices_are_left_alone(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("ConstantOfShape", ["shape"], ["ones"], value=numpy_helper.from_array(np.ones(1, np.float32))),
        helper.make_node("Cast", ["shape"], ["sizes"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMax", ["sizes"], ["largest"], keepdims=0),
        helper.make_node("Greater", ["x", "largest"], ["above"]),
        helper.make_node("Where", ["above", "ones", "x"], ["y"]),
    ]
    model = lower(tmp_path, nodes, {})
    x = np.array([[0, 1, 2, 3, 9, 10, 11, 12]], np.float32)
    assert np.array_equal(run(model, x=x), np.where(x > 8, 1, x))
    assert sum(node.op_type == "Cast" for node in model.graph.node) == 3  # x, sizes, y


def test_a_weight_that_does_not_fit_is_named(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["x", "w"], ["y"])]
    with pytest.raises(TargetError) as caught:
        lower(tmp_path, nodes, {"w": np.float32(1e6)}, weights=["w"])
    assert caught.value.code == "precision-unsupported"
    assert "weight w does not fit fp16: it reaches 1e+06" in caught.value.message
    lower(tmp_path, nodes, {"w": np.float32(1e6)}, "bf16", weights=["w"])


@pytest.mark.parametrize("precision", HALVES)
def test_the_minus_infinity_of_a_mask_stays_finite(tmp_path: Path, precision: Precision) -> None:
    nodes = [helper.make_node("Add", ["x", "mask"], ["h"]), helper.make_node("Softmax", ["h"], ["y"])]
    mask = np.full(8, np.finfo(np.float32).min, np.float32)
    model = lower(tmp_path, nodes, {"mask": mask}, precision)
    (item,) = model.graph.initializer
    assert np.isfinite(numpy_helper.to_array(item).astype(np.float32)).all()
    if precision == "fp16":
        assert np.allclose(run(model, x=np.zeros((1, 8), np.float32)), 1 / 8)


def test_branches_are_refused(tmp_path: Path) -> None:
    branch = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["z"])],
        "b",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    nodes = [helper.make_node("If", ["c"], ["y"], name="fork", then_branch=branch, else_branch=branch)]
    with pytest.raises(TargetError) as caught:
        lower(tmp_path, nodes, {"c": np.array(True)})
    assert "If (fork)" in caught.value.message


def test_large_graphs_keep_their_weights_beside_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill_rt.export.precision.SINGLE_FILE_LIMIT_BYTES", 100)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    model = lower(tmp_path, nodes, {"w": np.eye(64, dtype=np.float32)}, inputs=[("x", ("B", 64))])
    assert (tmp_path / "low.onnx.data").stat().st_size == 2 * 64 * 64
    assert np.array_equal(run(model, x=np.ones((1, 64), np.float32)), np.ones((1, 64)))
