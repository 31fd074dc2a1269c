"""Rewritten graphs compute the same, and nothing is rewritten that need not be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from handmade import make_model, make_spec
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from distill_rt.export.rewrites import COMPILE_PASSES, rewrite_graph

Array = NDArray[Any]


def group_norm_model(shape: list[int | str], groups: int, epsilon: float | None) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    channels = int(shape[1])
    attributes = {} if epsilon is None else {"epsilon": epsilon}
    graph = helper.make_graph(
        [helper.make_node("GroupNormalization", ["x", "scale", "bias"], ["y"], num_groups=groups, **attributes)],
        "group_norm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(rng.standard_normal(channels).astype(np.float32), name) for name in ("scale", "bias")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def decompose_group_norm(model: onnx.ModelProto) -> onnx.ModelProto:
    return ir.to_proto(COMPILE_PASSES["decompose-group-norm/1"](ir.from_proto(model)))


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


@pytest.mark.parametrize(
    ("shape", "groups", "epsilon"),
    [
        (["B", 8, 4, 4], 2, None),
        (["B", 8, 4, 4], 8, 1e-3),
        (["B", 6, 5], 3, 0.5),
        (["B", 4, 3, 2, 2], 1, 1e-6),
    ],
)
def test_group_norm_keeps_its_value(shape: list[int | str], groups: int, epsilon: float | None) -> None:
    model = group_norm_model(shape, groups, epsilon)
    x = np.random.default_rng(1).standard_normal([3, *shape[1:]]).astype(np.float32)  # type: ignore[list-item]
    (want,) = ReferenceEvaluator(model).run(None, {"x": x})
    model = decompose_group_norm(model)
    assert "GroupNormalization" not in operators(model)
    onnx.checker.check_model(model, full_check=True)
    (got,) = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


def test_a_free_dimension_is_left_alone() -> None:
    model = group_norm_model(["B", 8, "H", 4], 2, None)
    model = decompose_group_norm(model)
    assert operators(model) == ["GroupNormalization"]


def test_weights_keep_their_names() -> None:
    model = make_model(make_spec())
    before = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    model = decompose_group_norm(model)
    assert "GroupNormalization" not in operators(model)
    after = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    assert all(np.array_equal(after[name], value) for name, value in before.items())


def test_files(tmp_path: Path) -> None:
    source, destination = tmp_path / "source.onnx", tmp_path / "destination.onnx"
    model = make_model(make_spec())
    onnx.save(model, str(source))
    assert rewrite_graph(source, [], destination) == source
    assert rewrite_graph(source, list(COMPILE_PASSES), destination) == destination
    assert "InstanceNormalization" in operators(onnx.load(str(destination)))
    assert "GroupNormalization" in operators(onnx.load(str(source)))  # the bundle is not touched
    again = tmp_path / "again.onnx"
    assert rewrite_graph(destination, list(COMPILE_PASSES), again) == destination  # nothing left to do
    assert not again.exists()
