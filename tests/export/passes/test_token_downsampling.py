"""ToDo equals attention over pooled keys and values, in both ways that graphs write attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError
from distill_rt.export.passes.token_downsampling import kept_tokens, todo_pass

Array = NDArray[Any]

HEADS, TOKENS, WIDTH = 2, 16, 8
SHAPE = f"B, {HEADS}, {TOKENS}, {WIDTH}"

PLAIN = """
turned = Transpose<perm: ints = [0, 1, 3, 2]>(k)
scaled = Mul(turned, scale)
"""
FLATTENED = """
shape = Shape(k)
all = Shape<start: int = 0, end: int = 2>(k)
last = Shape<start: int = 2, end: int = 3>(k)
width = Shape<start: int = 3, end: int = 4>(k)
flat_shape = Concat<axis: int = 0>(minus, last, width)
flat = Reshape(k, flat_shape)
swapped = Transpose<perm: ints = [0, 2, 1]>(flat)
turned_shape = Concat<axis: int = 0>(all, width, last)
turned = Reshape(swapped, turned_shape)
scaled = Mul(turned, scale)
"""
"""As torch's exporter writes scaled_dot_product_attention."""


def attention(keys: str = PLAIN, *, tokens_of_k: int = TOKENS) -> ir.Model:
    inner = f"B, {HEADS}, {tokens_of_k}, {WIDTH}"
    text = f"""<ir_version: 10, opset_import: ["" : 21]>
    attention (float[{SHAPE}] x, float[{inner}] y) => (float[{SHAPE}] out)
    <float scale = {{0.5}}, int64[1] minus = {{-1}}, float[{SHAPE}] q, float[{inner}] k, float[{inner}] v,
     float[B, {HEADS}, {TOKENS}, {tokens_of_k}] scores, float[B, {HEADS}, {TOKENS}, {tokens_of_k}] weights> {{
        q = Mul(x, scale)
        k = Neg(y)
        v = Tanh(y)
        {keys}
        scores = MatMul(q, scaled)
        weights = Softmax<axis: int = -1>(scores)
        out = MatMul(weights, v)
    }}"""
    return ir.from_onnx_text(text)


def run(model: ir.Model, x: Array, y: Array) -> Array:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    output: Array = session.run(None, {"x": x, "y": y})[0]
    return output


def reference(x: Array, y: Array, kept: Array) -> Array:
    q, k, v = x * 0.5, -y[:, :, kept], np.tanh(y[:, :, kept])
    scores = q @ (0.5 * k).transpose(0, 1, 3, 2)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    result: Array = (weights / weights.sum(axis=-1, keepdims=True)) @ v
    return result


@pytest.mark.parametrize("keys", [PLAIN, FLATTENED], ids=["plain", "flattened"])
def test_equal_to_attention_over_pooled_keys(keys: str) -> None:
    x, y = np.random.default_rng(0).standard_normal((2, 3, HEADS, TOKENS, WIDTH)).astype(np.float32)
    model = attention(keys)
    np.testing.assert_allclose(run(model, x, y), reference(x, y, np.arange(TOKENS)), atol=1e-6)
    pooled = todo_pass(stride=2, min_tokens=TOKENS)(model)
    kept = np.array([0, 2, 8, 10])  # rows and columns 0 and 2 of a grid of 4 x 4
    want = reference(x, y, kept)
    np.testing.assert_allclose(run(pooled, x, y), want, atol=1e-6)
    assert np.abs(want - run(model, x, y)).max() > 0.05
    assert sum(node.op_type == "Gather" for node in pooled.graph) == 2
    assert sum(name.startswith("todo/") for name in pooled.graph.initializers) == 1


def test_kept_tokens() -> None:
    assert kept_tokens(36, 3).tolist() == [0, 3, 18, 21]
    assert kept_tokens(12, 2) is None
    assert kept_tokens(9, 2) is None


def test_a_graph_without_such_attention_is_refused() -> None:
    with pytest.raises(UsageError, match=r"at least 17 tokens.*have 16"):
        todo_pass(stride=2, min_tokens=17)(attention())
    with pytest.raises(UsageError, match=r"stride|grid that 3 divides"):
        todo_pass(stride=3, min_tokens=4)(attention())
    with pytest.raises(UsageError, match="it has no self-attention"):  # keys of another sequence
        todo_pass(stride=2, min_tokens=4)(attention(tokens_of_k=4))
    with pytest.raises(ValueError, match="stride"):
        todo_pass(stride=1)
