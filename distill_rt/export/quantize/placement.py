"""Which nodes of a network keep their precision: a rule on the graph, not on names.

Quantised are products and convolutions between features and weights. Kept are

- **time layers**: everything that depends on no feature, only on time, label, guidance. One error there shifts the whole
  image, and it is a millionth of the work (QuEST, https://arxiv.org/abs/2402.03666, and MixDQ, https://arxiv.org/abs/2405.17873,
  find these the most sensitive layers);
- the **first** operator on a feature input and the **last** before the output: they meet noise and pixels themselves;
- **attention**: products of two features. TensorRT has one kernel for it in half precision; in int8 it has none beyond 512
  tokens, and then computes it piece by piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from distill_rt.core.artifacts import Component

if TYPE_CHECKING:
    import onnx_ir as ir

WEIGHTED = frozenset({"Conv", "Gemm", "MatMul"})
"""What may be quantised; `ConvTranspose` has no 8-bit kernel in TensorRT's list."""
HEAVY = WEIGHTED | {"ConvTranspose", "Attention"}


def kept_nodes(model: ir.Model, component: Component, *, convolutions: bool = True) -> dict[str, str]:
    """Names of nodes that stay as they are, each with the reason.

    Args:
        model: every node has a name of its own.
        component: says which inputs are features: those with more than one dimension.
        convolutions: False keeps all of them.
    """
    nodes = [node for node in model.graph if node.op_type in HEAVY]
    order = list(model.graph)
    features = {tensor.name for tensor in component.inputs if len(tensor.shape) > 1}
    from_features = _reached(order, features, through_heavy=True)
    touched = _reached(order, features, through_heavy=False)
    before_output = _reaching(order, {value.name for value in model.graph.outputs if value.name})
    kept: dict[str, str] = {}
    for node in nodes:
        name = node.name or ""
        inputs = [value.name for value in node.inputs if value is not None]
        outputs = [value.name for value in node.outputs]
        if node.op_type not in WEIGHTED:
            kept[name] = "operator"
        elif not from_features.intersection(inputs):
            kept[name] = "time"
        elif touched.intersection(inputs):
            kept[name] = "first"
        elif before_output.intersection(outputs):
            kept[name] = "last"
        elif sum(value.const_value is None and not _constant(value) for value in node.inputs[:2] if value) == 2:
            kept[name] = "attention"
        elif node.op_type == "Conv" and not convolutions:
            kept[name] = "convolution"
    return kept


def _reached(nodes: list[ir.Node], start: set[str], *, through_heavy: bool) -> set[str | None]:
    """Values that depend on `start`; without `through_heavy` only as far as the first heavy operator."""
    reached: set[str | None] = set(start)
    for node in nodes:
        if node.op_type == "Shape" or (node.op_type in HEAVY and not through_heavy):
            continue
        if any(value is not None and value.name in reached for value in node.inputs):
            reached.update(value.name for value in node.outputs)
    return reached


def _reaching(nodes: list[ir.Node], outputs: set[str]) -> set[str | None]:
    """Values from which an output is reached without a heavy operator on the way."""
    reaching: set[str | None] = set(outputs)
    for node in reversed(nodes):
        if node.op_type not in HEAVY and any(value.name in reaching for value in node.outputs):
            reaching.update(value.name for value in node.inputs if value is not None)
    return reaching


def _constant(value: ir.Value) -> bool:
    """Whether a value is computed from initializers alone (a transposed weight)."""
    node = value.producer()
    if node is None:
        return value.const_value is not None
    return all(item is None or _constant(item) for item in node.inputs)
