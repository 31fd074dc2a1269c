"""Compute at export what follows from constants that a row fixes: above all the time embedding and its projections.

Such a value depends on the number of images only in that the exporter spread it over the batch. So everything that follows from
the constants named ``given/...`` and from the batch size is evaluated at two batch sizes; a value with the same rows in both
becomes a constant with one row, spread again only where an operator does not broadcast. Whatever comes from weights alone
(a transposed weight) stays: compilers fold it, and its result would be a second copy of the weight.

Legend: B images, N evaluations per network call (2B under cfg).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.optional import require
from distill_rt.export.passes.constants import add_initializer
from distill_rt.export.passes.unroll import GIVEN
from distill_rt.export.passes.writer import GraphWriter

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]

BROADCASTING = frozenset({"Add", "Sub", "Mul", "Div"})
PROBES = (1, 2)
"""Batch sizes at which values are compared."""
SIZE_LIMIT_BYTES = 1 << 20
"""Values larger than this, per image, are left to be computed."""


def fold_given(model: ir.Model, *, size_limit_bytes: int = SIZE_LIMIT_BYTES) -> ir.Model:
    """Replace what follows from ``given/`` constants by its value.

    Nodes that nothing needs any more stay; `distill_rt.export.passes.share.remove_dead` takes them away.
    """
    follows = _following(model.graph)
    frontier = [value for value in follows if _leaves(value, follows) and _is_small(value, size_limit_bytes)]
    if not frontier:
        return model
    results = _evaluate(model, follows, frontier)
    folded: dict[tuple[tuple[int, ...], bytes], ir.Value] = {}
    for value, (one, two) in zip(frontier, results, strict=True):
        constant = _one_row(one, two)
        if constant is not None and constant.nbytes <= size_limit_bytes:
            key = constant.shape, constant.tobytes()
            if key not in folded:
                folded[key] = add_initializer(model.graph, f"folded/{value.name}", constant)
            rows_per_image = None if one.shape == two.shape else len(one)
            users = [(user, index) for user, index in value.uses() if not _all_follow(user, follows)]
            _replace(model.graph, value, folded[key], users, rows_per_image)
    return model


def _following(graph: ir.Graph) -> dict[ir.Value, None]:
    """Values that follow from given constants and the batch size, in order; what comes from weights alone may take part."""
    follows = {value: None for name, value in graph.initializers.items() if name.startswith(GIVEN)}
    fixed = {value for value in graph.initializers.values() if value not in follows}
    for node in graph:
        inputs = [value for value in node.inputs if value is not None]
        if _shape_at(node, 1) is not None:
            follows.update(dict.fromkeys(node.outputs))
        elif all(value in fixed for value in inputs):
            fixed.update(node.outputs)
        elif all(value in follows or value in fixed for value in inputs):
            follows.update(dict.fromkeys(node.outputs))
    return follows


def _shape_at(node: ir.Node, num_images: int) -> Array | None:
    """What a Shape gives for a number of images; None for other operators, or if more than the batch is unknown."""
    shape = node.inputs[0].shape if node.op_type == "Shape" and node.inputs[0] is not None else None
    if shape is None:
        return None
    rows = {"B": num_images, "N": 2 * num_images}
    dims = [dim if isinstance(dim, int) else rows.get(str(dim)) if i == 0 else None for i, dim in enumerate(shape)]
    if None in dims:
        return None
    start = node.attributes["start"].as_int() if "start" in node.attributes else 0
    end = node.attributes["end"].as_int() if "end" in node.attributes else len(dims)
    return np.array(dims[start:end], np.int64)


def _leaves(value: ir.Value, follows: Mapping[ir.Value, None]) -> bool:
    """Whether something needs it that does not itself follow."""
    return value.producer() is not None and not all(_all_follow(user, follows) for user, _ in value.uses())


def _all_follow(node: ir.Node, follows: Mapping[ir.Value, None]) -> bool:
    return all(output in follows for output in node.outputs)


def _is_small(value: ir.Value, size_limit_bytes: int) -> bool:
    """Numbers, not a shape; and not too many of them, as far as is known before they are computed."""
    if value.dtype is not None and not value.dtype.is_floating_point():
        return False
    static = [dim for dim in value.shape or () if isinstance(dim, int)]
    return 4 * int(np.prod(static)) <= size_limit_bytes


def _evaluate(
    model: ir.Model, follows: Mapping[ir.Value, None], wanted: Sequence[ir.Value]
) -> list[tuple[Array, Array]]:
    """Every wanted value at the two probed batch sizes, by ONNX Runtime in float32."""
    ir = require("onnx_ir", extra="export")
    ort = require("onnxruntime", extra="export")
    needed = _ancestors(wanted)
    feeds = [node.outputs[0] for node in needed if _shape_at(node, 1) is not None]
    graph = GraphWriter([])
    values: dict[Any, Any] = {}
    for number, value in enumerate(feeds):
        values[value] = ir.Value(name=f"shape{number}", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([None]))
        graph.inputs.append(values[value])
    for name, value in model.graph.initializers.items():
        values[value] = graph.initializer(name, value.const_value)
    for node in needed:
        if node.outputs[0] not in feeds:
            graph.copy_node(node, values, "B")
    cone = graph.model(
        [values[value] for value in wanted],
        name="given",
        opset=model.opset_imports[""],
        ir_version=model.ir_version,
    )
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(cone)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "given.onnx"
        ir.save(cone, path, external_data="given.data")  # weights may take part, and those have no upper size
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        runs = []
        for batch in PROBES:
            inputs = {str(values[value].name): _shape_at(value.producer(), batch) for value in feeds}
            runs.append(session.run(None, inputs))
    return list(zip(*runs, strict=True))


def _ancestors(values: Sequence[ir.Value]) -> list[ir.Node]:
    """Nodes that compute the values, stopping at Shape, in the order of their graph."""
    seen: set[ir.Node] = set()
    pending = [node for value in values if (node := value.producer()) is not None]
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node.op_type != "Shape":
            pending += [node for value in node.inputs if value is not None and (node := value.producer()) is not None]
    graph = values[0].producer().graph
    return [node for node in graph if node in seen]


def _one_row(one: Array, two: Array) -> Array | None:
    """The value without its batch: as it is if both batches agree, its row if all rows do; None if it depends on the batch."""
    if not np.issubdtype(one.dtype, np.floating):
        return None
    if one.shape == two.shape:
        return one if np.array_equal(one, two) else None
    if one.shape[1:] != two.shape[1:] or len(two) != 2 * len(one):
        return None
    rows = np.concatenate([one, two])
    # Equal to the last bit but for the order of sums, which may differ between a product of one row and of several.
    return one[:1] if np.allclose(rows, one[:1], rtol=1e-6, atol=1e-7) else None


def _replace(
    graph: ir.Graph,
    value: ir.Value,
    folded: ir.Value,
    users: Sequence[tuple[ir.Node, int]],
    rows_per_image: int | None,
) -> None:
    """Let the users read the constant."""
    spread: Any = None
    for user, index in users:
        if rows_per_image is None or _broadcasts(user, value):
            user.replace_input_with(index, folded)
        else:
            spread = spread or _spread(graph, value, folded, rows_per_image)
            user.replace_input_with(index, spread)


def _broadcasts(user: ir.Node, value: ir.Value) -> bool:
    """Whether the other operand has every row of the batch by itself."""
    if user.op_type not in BROADCASTING or value.shape is None:
        return False
    others = [operand for operand in user.inputs if operand is not value]
    return bool(others) and all(
        operand is not None
        and operand.shape is not None
        and len(operand.shape) == len(value.shape)
        and not isinstance(operand.shape[0], int)
        for operand in others
    )


def _spread(graph: ir.Graph, value: ir.Value, folded: ir.Value, rows_per_image: int) -> ir.Value:
    """The constant once per evaluation, for operators that do not broadcast."""
    writer = GraphWriter([])
    writer.scope = f"folded/{value.name}/"
    rows = writer.op("Shape", graph.inputs[0], start=0, end=1)
    if rows_per_image > 1:
        rows = writer.op("Mul", rows, writer.constant([rows_per_image], np.int64))
    assert folded.shape is not None
    target = writer.op("Concat", rows, writer.constant([1] * (len(folded.shape) - 1), np.int64), axis=0)
    spread: ir.Value = writer.op("Expand", folded, target)
    spread.type, spread.shape = value.type, value.shape
    for number, constant in enumerate(writer.initializers.values()):
        constant.name = f"folded/{value.name}/constant{number}"
        graph.register_initializer(constant)
    graph.insert_before(graph[0], writer.nodes)
    return spread
