"""What rows fix is computed at export, nothing else is, and no weight is written down twice."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from handmade import GuidanceMode, make_ir, make_model, make_spec

from distill_rt.export.passes.fold import fold_given
from distill_rt.export.passes.share import remove_dead, share_subexpressions
from distill_rt.export.trajectory_graph import trajectory_model


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


@pytest.mark.parametrize("guidance", ["none", "embedded", "cfg"])
def test_the_time_embedding_is_a_constant(guidance: GuidanceMode) -> None:
    spec = make_spec(guidance)
    step = make_ir(make_model(spec))
    model = trajectory_model({"network0": step}, spec, 4)
    counts = operators(model)
    assert counts["Sin"] == counts["Cos"] == 0
    assert counts["Conv"] == 8
    assert "network0.time.weight" not in model.graph.initializers
    folded = [value for name, value in model.graph.initializers.items() if name.startswith("folded/")]
    assert len(folded) == 4
    assert {tuple(value.const_value.shape) for value in folded if value.const_value is not None} == {(1, 16)}
    # The label's embedding follows from the request: it is computed, but once for all steps.
    assert counts["Gather"] == 1
    assert counts["MatMul"] == (1 if guidance == "embedded" else 0)


def expression(source: str) -> ir.Model:
    """A graph in ONNX's text form; the initializer `given_time` becomes a constant that a row fixes."""
    model = ir.from_onnx_text(f'<ir_version: 10, opset_import: ["" : 21]>\n{source}')
    value = model.graph.initializers.pop("given_time")
    value.name = "given/time"
    model.graph.register_initializer(value)
    return model


def test_operators_that_do_not_broadcast_get_every_row() -> None:
    model = expression(
        """
        concat (float[B, 2] noise) => (float[B, 4] y)
        <float[1] given_time = {3.0}, int64[1] one = {1}, float[1, 2] weight = {1.0, 2.0},
        float[B] time, float[B, 1] column, float[B, 2] features> {
            rows = Shape<start: int = 0, end: int = 1>(noise)
            time = Expand(given_time, rows)
            column = Unsqueeze(time, one)
            features = MatMul(column, weight)
            y = Concat<axis: int = 1>(noise, features)
        }
        """
    )
    model = remove_dead(fold_given(model))
    assert operators(model) == {"Shape": 1, "Concat": 2, "Expand": 1}
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    noise = np.arange(6, dtype=np.float32).reshape(3, 2)
    (got,) = session.run(None, {"noise": noise})
    np.testing.assert_array_equal(got, np.concatenate([noise, np.tile(np.float32([3, 6]), (3, 1))], axis=1))


def test_what_depends_on_the_batch_itself_is_left_alone() -> None:
    """A softmax over the batch gives 1/B in every row: one row is not the value."""
    model = expression(
        """
        softmax (float[B, 2] noise) => (float[B, 2] y)
        <float[1, 1] given_time = {3.0}, int64[1] one = {1}, float[B, 1] time, float[B, 1] share> {
            rows = Shape<start: int = 0, end: int = 1>(noise)
            shape = Concat<axis: int = 0>(rows, one)
            time = Expand(given_time, shape)
            share = Softmax<axis: int = 0>(time)
            y = Mul(noise, share)
        }
        """
    )
    assert "Softmax" in operators(remove_dead(fold_given(model)))


def test_large_values_are_left_alone() -> None:
    spec = make_spec("none")
    model = share_subexpressions(trajectory_model({"network0": make_ir(make_model(spec))}, spec, 4))
    unfolded = remove_dead(fold_given(model.clone(), size_limit_bytes=8))
    assert operators(unfolded) == operators(model)


def test_transposed_weights_are_not_copied() -> None:
    """They follow from weights alone: folding them would store them a second time."""
    model = expression(
        """
        transposed (float[B, 2] noise) => (float[B, 2] y)
        <float[1, 2] given_time = {3.0, 4.0}, float[2, 2] weight = {1.0, 2.0, 3.0, 4.0},
        float[1, 2] time, float[B, 2] product> {
            turned = Transpose(weight)
            time = MatMul(given_time, turned)
            product = MatMul(noise, turned)
            y = Add(product, time)
        }
        """
    )
    model = remove_dead(fold_given(model))
    assert operators(model) == {"Transpose": 1, "MatMul": 1, "Add": 1}
    assert sum(value.const_value.size for value in model.graph.initializers.values() if value.const_value) == 4 + 2
