"""Several ONNX nodes that are one operation in torch: attention and linear layers.

ONNX has neither before opset 23, so the exporter writes them out. Left like that, attention materialises its (L, S) matrix and
copies K to transpose it; as `scaled_dot_product_attention` it is one flash kernel on GPUs. A bias beside its product lets the
product's kernel add it.

Legend: L queries, S keys, D head size.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from distill_rt.backends.inductor.graph.node import Node
from distill_rt.backends.inductor.graph.read import Graph

ATTENTION, LINEAR = "FusedAttention", "FusedLinear"


def recognise(graph: Graph) -> Graph:
    """The graph with attention and linear layers as single nodes; what they replace is removed where nothing else needs it."""
    found = _Patterns(graph)
    replaced = {node.outputs[0]: node for node in [*found.attentions(), *found.linears()]}
    nodes = tuple(replaced.get(node.outputs[0], node) for node in graph.nodes)
    return replace(graph, nodes=nodes).without_unused()


class _Patterns:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producer = {name: node for node in graph.nodes for name in node.outputs}
        self.consumers: dict[str, list[Node]] = {}
        for node in graph.nodes:
            for name in node.inputs:
                self.consumers.setdefault(name, []).append(node)
        self.uses = Counter(name for node in graph.nodes for name in node.inputs if name)
        self.uses.update(graph.outputs)

    # -- attention: softmax(scale * q @ k^T + mask) @ v ----------------------------------------------------------------

    def attentions(self) -> Iterator[Node]:
        """One node for each attention; inputs are q, k^T, v, mask, and what k^T may be made of."""
        for softmax in self.graph.nodes:
            if softmax.operator != "Softmax":
                continue
            scores, mask, scale = self._scores(softmax.inputs[0])
            final = self._weighted_sum(softmax.outputs[0])
            if scores is None or final is None:
                continue
            (q, q_scale), (k_transposed, k_scale) = (self._unscaled(name) for name in scores.inputs)
            yield Node(
                operator=ATTENTION,
                name=final.name,
                inputs=(q, k_transposed, final.inputs[1], mask, *self._keys(k_transposed)),
                outputs=final.outputs,
                attributes={"scale": scale * q_scale * k_scale, "axis": softmax.attribute("axis", -1)},
            )

    def _scores(self, name: str) -> tuple[Node | None, str, float]:
        """The product of q and k^T, the mask and the scale behind a softmax."""
        node, mask, scale = self._sole(name), "", 1.0
        if node is not None and node.operator == "Add":
            for mine, other in (node.inputs, node.inputs[::-1]):
                product, factor = self._scaled_product(mine)
                if product is not None:
                    return product, other, factor
        product, scale = self._scaled_product(name)
        return product, mask, scale

    def _scaled_product(self, name: str) -> tuple[Node | None, float]:
        node, scale = self._sole(name), 1.0
        if node is not None and node.operator in ("Mul", "Div"):
            inner, scale = self._unscaled(name)
            node = self._sole(inner) if inner != name else None
        return (node if node is not None and node.operator == "MatMul" else None), scale

    def _weighted_sum(self, name: str) -> Node | None:
        """The product of a softmax with v; between them the exporter may replace NaN of rows without any key by 0, which
        torch's attention does itself."""
        consumers = self.consumers.get(name, [])
        if sorted(node.operator for node in consumers) == ["IsNaN", "Where"]:
            cleaned = next(node for node in consumers if node.operator == "Where")
            condition, zero, kept = cleaned.inputs
            test = self.producer.get(condition)
            if kept != name or test not in consumers or self._scalar(zero) != 0:
                return None
            name = cleaned.outputs[0]
            consumers = self.consumers.get(name, [])
        if len(consumers) != 1 or self.uses[name] != 1:
            return None
        (node,) = consumers
        return node if node.operator == "MatMul" and node.inputs[0] == name else None

    def _unscaled(self, name: str) -> tuple[str, float]:
        """What a value is a multiple of by a constant, and the factor."""
        node = self.producer.get(name)
        if node is None or node.operator not in ("Mul", "Div"):
            return name, 1.0
        first, second = node.inputs
        if (factor := self._scalar(second)) is not None:
            return first, factor if node.operator == "Mul" else 1.0 / factor
        if node.operator == "Mul" and (factor := self._scalar(first)) is not None:
            return second, factor
        return name, 1.0

    def _keys(self, name: str) -> tuple[str, ...]:
        """(k, flat) where k^T may be made of k by reshaping to flat (B * H, S, D), transposing and reshaping back. Only their
        shapes can tell, so the operator decides."""
        node = self.producer.get(name)
        if node is None or node.operator != "Reshape":
            return ()
        swap = self.producer.get(node.inputs[0])
        if swap is None or swap.operator != "Transpose" or list(swap.attribute("perm", ())) != [0, 2, 1]:
            return ()
        flatten = self.producer.get(swap.inputs[0])
        return (flatten.inputs[0], swap.inputs[0]) if flatten is not None and flatten.operator == "Reshape" else ()

    # -- linear layers: x @ w^T + bias ---------------------------------------------------------------------------------

    def linears(self) -> Iterator[Node]:
        """One node for each product with a transposed weight, with its bias where there is one."""
        for product in self.graph.nodes:
            swap = self.producer.get(product.inputs[1]) if product.operator == "MatMul" else None
            if swap is None or swap.operator != "Transpose":
                continue
            weight = self.graph.initializers.get(swap.inputs[0])
            if weight is None or weight.ndim != 2 or list(swap.attribute("perm", (1, 0))) != [1, 0]:
                continue
            inputs = (product.inputs[0], swap.inputs[0])
            yield Node(operator=LINEAR, name=product.name, inputs=inputs, outputs=product.outputs)
            consumers = self.consumers.get(product.outputs[0], [])
            if self.uses[product.outputs[0]] == 1 and consumers and consumers[0].operator == "Add":
                (add,) = consumers
                (bias,) = (name for name in add.inputs if name != product.outputs[0])
                array = self.graph.initializers.get(bias)
                if array is not None and array.shape == weight.shape[:1]:
                    yield Node(operator=LINEAR, name=add.name, inputs=(*inputs, bias), outputs=add.outputs)

    # -- values --------------------------------------------------------------------------------------------------------

    def _sole(self, name: str) -> Node | None:
        """The producer of a value that nobody else reads."""
        return self.producer.get(name) if self.uses[name] == 1 else None

    def _scalar(self, name: str) -> float | None:
        array = self.graph.initializers.get(name)
        return float(np.ravel(array)[0]) if array is not None and array.size == 1 and array.ndim <= 1 else None
