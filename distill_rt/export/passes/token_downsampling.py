"""ToDo: in self-attentions over many tokens, keys and values are every second token of the image grid; queries stay.

Smith et al. 2024, "ToDo: Token Downsampling for Efficient Generation of High-Resolution Images" (arXiv 2402.13573), section
3.2: nearest-neighbour downsampling of keys and values. With a stride s attention costs 1/s^2. Here the tokens are taken after
the projections, which is the same: a projection treats every token alone.

Legend: B images, H heads, N tokens of a grid of h x w, M tokens kept, D elements of a head.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from distill_rt.core.errors import UsageError
from distill_rt.core.optional import require
from distill_rt.export.passes.constants import add_initializer
from distill_rt.export.passes.interface import Pass

if TYPE_CHECKING:
    import onnx_ir as ir

TODO_VERSION = 1
MIN_TOKENS = 1024
"""Below, projections and everything else outweigh attention, and the error buys little time."""
_PASSED = ("Mul", "Div", "Reshape", "Transpose", "Cast")
"""What stands between the keys of all heads and the product with the queries: a scale, and the transposition."""


def todo_pass(*, stride: int = 2, min_tokens: int = MIN_TOKENS) -> Pass:
    """Token downsampling as a pass on any graph."""
    if stride < 2:
        raise ValueError(f"stride must be at least 2, got {stride}")
    return Pass(
        name="todo",
        version=TODO_VERSION,
        function=downsample_tokens,
        settings={"stride": stride, "min_tokens": min_tokens},
    )


def downsample_tokens(model: ir.Model, *, stride: int, min_tokens: int) -> ir.Model:
    """Keep every `stride`-th row and column of keys and values in self-attentions with at least `min_tokens` tokens.

    Raises:
        UsageError: the graph has no such attention; says what it has.
    """
    sizes: list[int] = []
    indices: dict[int, ir.Value] = {}
    changed = 0
    for node in list(model.graph):
        found = _self_attention(node)
        if found is None:
            continue
        keys, values, num_tokens = found
        sizes.append(num_tokens)
        kept = kept_tokens(num_tokens, stride)
        if num_tokens < min_tokens or kept is None:
            continue
        if num_tokens not in indices:
            indices[num_tokens] = add_initializer(model.graph, f"todo/{num_tokens}.{stride}", kept)
        for value in dict.fromkeys((keys, values)):
            _gather(model.graph, value, indices[num_tokens], len(kept))
        _forget_shapes(node, values)
        changed += 1
    if not changed:
        have = (
            f"its self-attentions have {', '.join(map(str, sorted(set(sizes))))}"
            if sizes
            else "it has no self-attention"
        )
        raise UsageError(
            f"no self-attention with at least {min_tokens} tokens on a grid that {stride} divides: {have}",
            code="todo-nothing",
            hint="ToDo is for images of many tokens; leave it out, or lower min_tokens",
        )
    return model


def kept_tokens(num_tokens: int, stride: int) -> Any:
    """Indices of every `stride`-th row and column of a square grid, int64; None if there is no such grid."""
    side = math.isqrt(num_tokens)
    if side * side != num_tokens or side % stride:
        return None
    grid = np.arange(num_tokens, dtype=np.int64).reshape(side, side)
    return grid[::stride, ::stride].reshape(-1)


def _self_attention(node: ir.Node) -> tuple[ir.Value, ir.Value, int] | None:
    """Keys, values (both (B, H, N, D)) and N, if the node is the Softmax of an attention with as many keys as queries."""
    if node.op_type != "Softmax":
        return None
    scores = node.inputs[0].producer() if node.inputs[0] is not None else None
    users = [user for user, index in node.outputs[0].uses() if user.op_type == "MatMul" and index == 0]
    if scores is None or scores.op_type != "MatMul" or len(users) != 1:
        return None
    values, queries, turned = users[0].inputs[1], scores.inputs[0], scores.inputs[1]
    assert values is not None
    assert queries is not None
    assert turned is not None
    if values.shape is None or queries.shape is None or len(values.shape) != 4 or len(queries.shape) != 4:
        return None
    keys = _keys(turned, values.shape)
    num_tokens = values.shape[2]
    if keys is None or not isinstance(num_tokens, int) or queries.shape[2] != num_tokens:
        return None
    return keys, values, num_tokens


def _keys(value: ir.Value, shape: ir.Shape) -> ir.Value | None:
    """Upwards from the product with the queries to the keys of all heads: the first value of the shape of the values.

    A scaled copy has that shape too, so the walk goes on as long as only a scale lies above.
    """
    keys: ir.Value | None = None
    current: ir.Value | None = value
    while current is not None:
        if current.shape == shape:
            keys = current
        node = current.producer()
        if node is None or node.op_type not in _PASSED:
            break
        if keys is not None and node.op_type in ("Reshape", "Transpose", "Cast"):
            break
        current = node.inputs[0]
    return keys


def _gather(graph: ir.Graph, value: ir.Value, indices: ir.Value, num_kept: int) -> None:
    """Let everything that reads (B, H, N, D) read (B, H, M, D)."""
    onnx_ir = require("onnx_ir", extra="export")
    assert value.shape is not None
    users = list(value.uses())
    node = onnx_ir.node("Gather", [value, indices], {"axis": 2}, name=f"{value.name}/todo")
    (kept,) = node.outputs
    kept.name, kept.type = node.name, value.type
    kept.shape = onnx_ir.Shape([*value.shape[:2], num_kept, value.shape[3]])
    producer = value.producer()
    assert producer is not None
    graph.insert_after(producer, node)
    for user, index in users:
        user.replace_input_with(index, kept)


def _forget_shapes(softmax: ir.Node, values: ir.Value) -> None:
    """Between the keys and the scores, shapes that were inferred for N keys are not known any more."""
    assert values.shape is not None
    softmax.outputs[0].shape = None
    scores = softmax.inputs[0]
    assert scores is not None
    scores.shape = None
    producer = scores.producer()
    current = None if producer is None else producer.inputs[1]
    while current is not None and (node := current.producer()) is not None and node.op_type in _PASSED:
        current.shape = None
        current = node.inputs[0]
