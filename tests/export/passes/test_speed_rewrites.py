"""Rewrites for speed compute the same, share what steps share, and leave alone what has another form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from distill_rt.export.passes.group_norm_moments import group_norm_moments
from distill_rt.export.passes.projections import merge_projections
from distill_rt.export.passes.upsampled_conv import transposed_kernel
from distill_rt.export.rewrites import COMPILE_PASSES

Array = NDArray[Any]

NEAREST: Mapping[str, Any] = {
    "mode": "nearest",
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}


def make(
    nodes: Sequence[onnx.NodeProto],
    shape: Sequence[int | str],
    weights: Mapping[str, Array],
    outputs: Sequence[str] = ("y",),
) -> ir.Model:
    graph = helper.make_graph(
        nodes,
        "rewrites",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * len(shape)) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ir.from_proto(onnx.shape_inference.infer_shapes(model))


def run(model: ir.Model, x: Array) -> list[Array]:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    return list(ReferenceEvaluator(proto).run(None, {"x": x}))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def normal(*shape: int) -> Array:
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def upsampled(resize: Mapping[str, Any] = NEAREST, scales: Sequence[float] = (1, 1, 2, 2), **conv: Any) -> ir.Model:
    conv = {"pads": [1, 1, 1, 1]} | conv
    return make(
        [
            helper.make_node("Resize", ["x", "", "scales"], ["up"], **resize),
            helper.make_node("Conv", ["up", "w", "b"], ["y"], name="conv", **conv),
        ],
        ["B", 3, 5, 4],
        {"w": normal(6, 3, 3, 3), "b": normal(6), "scales": np.array(scales, np.float32)},
    )


def test_upsampling_folds_into_the_convolution() -> None:
    model, x = upsampled(), normal(2, 3, 5, 4)
    folded = COMPILE_PASSES["fold-upsampling/1"](model)
    assert operators(folded) == ["ConvTranspose"]
    assert set(folded.graph.initializers) == {"w/upsampled", "b"} | (set(folded.graph.initializers) & {"w", "scales"})
    np.testing.assert_allclose(run(folded, x)[0], run(model, x)[0], rtol=1e-4, atol=1e-5)


def test_transposed_kernel_keeps_the_sum_of_taps() -> None:
    weight = normal(6, 3, 3, 3)
    kernel = transposed_kernel(weight)
    assert kernel.shape == (3, 6, 4, 4)
    # every output pixel meets one tap of each parity, so each parity class adds up to the whole kernel
    for a in range(2):
        for b in range(2):
            np.testing.assert_allclose(kernel[:, :, a::2, b::2].sum((2, 3)).T, weight.sum((2, 3)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [
        upsampled({**NEAREST, "mode": "linear"}),
        upsampled({**NEAREST, "nearest_mode": "ceil"}),
        upsampled(scales=(1, 1, 3, 3)),
        upsampled(pads=[0, 0, 0, 0]),
        upsampled(strides=[2, 2]),
        upsampled(dilations=[2, 2]),
    ],
    ids=["linear", "ceil", "threefold", "unpadded", "strided", "dilated"],
)
def test_other_forms_of_upsampling_stay(model: ir.Model) -> None:
    assert operators(COMPILE_PASSES["fold-upsampling/1"](model)) == ["Resize", "Conv"]


def test_an_upsampled_image_that_is_read_twice_stays() -> None:
    model = make(
        [
            helper.make_node("Resize", ["x", "", "scales"], ["up"], **NEAREST),
            helper.make_node("Conv", ["up", "w"], ["y"], pads=[1, 1, 1, 1]),
            helper.make_node("Sigmoid", ["up"], ["z"]),
        ],
        ["B", 3, 5, 4],
        {"w": normal(6, 3, 3, 3), "scales": np.array([1, 1, 2, 2], np.float32)},
        outputs=("y", "z"),
    )
    assert operators(COMPILE_PASSES["fold-upsampling/1"](model)) == ["Resize", "Conv", "Sigmoid"]


def projections(steps: int = 1) -> ir.Model:
    """Per step: q with a transposed weight and a bias, k with a plain one, v without a bias, and a Gemm on its own."""
    nodes, outputs = [], []
    for i in range(steps):
        nodes += [
            helper.make_node("Sin" if i else "Cos", ["x"], [f"h{i}"]),
            helper.make_node("Transpose", ["wq"], [f"wqT{i}"], perm=[1, 0]),
            helper.make_node("MatMul", [f"h{i}", f"wqT{i}"], [f"qm{i}"]),
            helper.make_node("Add", [f"qm{i}", "bq"], [f"q{i}"]),
            helper.make_node("MatMul", [f"h{i}", "wk"], [f"km{i}"]),
            helper.make_node("Add", ["bk", f"km{i}"], [f"k{i}"]),
            helper.make_node("MatMul", [f"h{i}", "wv"], [f"v{i}"]),
            helper.make_node("Identity", [f"v{i}"], [f"vo{i}"]),
        ]
        outputs += [f"q{i}", f"k{i}", f"vo{i}"]
    return make(
        nodes,
        ["B", 7, 4],
        {"wq": normal(6, 4), "bq": normal(6), "wk": normal(4, 5), "bk": normal(5), "wv": normal(4, 3)},
        outputs,
    )


@pytest.mark.parametrize("steps", [1, 2])
def test_projections_of_one_input_are_joined(steps: int) -> None:
    model, x = projections(steps), normal(2, 7, 4)
    merged = COMPILE_PASSES["merge-projections/1"](model)
    counts = {name: operators(merged).count(name) for name in ("MatMul", "Add", "Split", "Transpose")}
    # q and k have biases and are joined; v has none and is alone of its kind
    assert counts == {"MatMul": 2 * steps, "Add": steps, "Split": steps, "Transpose": 0}
    assert [name for name in merged.graph.initializers if name.startswith("joined")] == ["joined0/wq", "joined1/bq"]
    for got, want in zip(run(merged, x), run(model, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_gemms_of_one_input_are_joined() -> None:
    model = make(
        [
            helper.make_node("Gemm", ["x", "w0", "b0"], ["y"], transB=1),
            helper.make_node("Gemm", ["x", "w1", "b1"], ["z"]),
            helper.make_node("Gemm", ["x", "w1", "b1"], ["scaled"], alpha=2.0),
        ],
        ["B", 4],
        {"w0": normal(6, 4), "b0": normal(6), "w1": normal(4, 5), "b1": normal(5)},
        outputs=("y", "z", "scaled"),
    )
    x = normal(2, 4)
    merged = COMPILE_PASSES["merge-projections/1"](model)
    assert sorted(operators(merged)) == ["Gemm", "Gemm", "Split"]
    for got, want in zip(run(merged, x), run(model, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_large_products_are_not_joined() -> None:
    small = merge_projections(projections(), max_elements=7 * 11)
    assert operators(small).count("Split") == 1
    large = merge_projections(projections(), max_elements=7 * 11 - 1)
    assert operators(large) == operators(projections())


def gated(axis: int = -1, twice: bool = False) -> ir.Model:
    """A gated feed-forward layer in two steps with one weight."""
    nodes, outputs = [], []
    for i in range(2):
        nodes += [
            helper.make_node("Sin" if i else "Cos", ["x"], [f"h{i}"]),
            helper.make_node("MatMul", [f"h{i}", "w"], [f"m{i}"]),
            helper.make_node("Add", [f"m{i}", "b"], [f"a{i}"]),
            helper.make_node("Split", [f"a{i}", "sizes"], [f"u{i}", f"v{i}"], axis=axis),
            helper.make_node("Sigmoid", [f"v{i}"], [f"s{i}"]),
            helper.make_node("Mul", [f"u{i}", f"s{i}"], [f"y{i}"]),
        ]
        outputs.append(f"y{i}")
        if twice:
            nodes.append(helper.make_node("Identity", [f"a{i}"], [f"z{i}"]))
            outputs.append(f"z{i}")
    sizes = np.array([3, 3], np.int64)
    return make(nodes, ["B", 6, 4], {"w": normal(4, 6), "b": normal(6), "sizes": sizes}, outputs)


def test_a_split_product_becomes_one_for_each_part() -> None:
    model, x = gated(), normal(2, 6, 4)
    split = COMPILE_PASSES["split-projections/1"](model)
    assert "Split" not in operators(split)
    assert operators(split).count("MatMul") == 4
    assert {"w/from0", "w/from3", "b/from0", "b/from3"} <= set(split.graph.initializers)  # once, not for each step
    for got, want in zip(run(split, x), run(model, x), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("model", [gated(axis=1), gated(twice=True)], ids=["other axis", "read twice"])
def test_other_splits_stay(model: ir.Model) -> None:
    assert operators(COMPILE_PASSES["split-projections/1"](model)) == operators(model)


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("groups", [1, 2, 8])
def test_group_norm_by_moments(groups: int, offset: float) -> None:
    norm = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=groups, epsilon=1e-3)
    model = make([norm], ["B", 8, 4, 6], {"scale": normal(8), "bias": normal(8)})
    x = normal(3, 8, 4, 6) + np.float32(offset)
    rewritten = group_norm_moments(model.clone(), min_elements=1)
    assert "GroupNormalization" not in operators(rewritten)
    np.testing.assert_allclose(run(rewritten, x)[0], run(model, x)[0], rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("shape", [["B", 8, 4, 4], ["B", 8, 400000], ["B", 8, "H", 400]], ids=["small", "flat", "free"])
def test_other_group_norms_stay(shape: list[int | str]) -> None:
    norm = helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=2)
    model = make([norm], shape, {"scale": normal(8), "bias": normal(8)})
    assert operators(COMPILE_PASSES["group-norm-moments/1"](model)) == ["GroupNormalization"]
