"""ONNX file + batch -> a torch module and the inputs to export it with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from distill_rt.backends.inductor.graph.module import GraphModule
from distill_rt.backends.inductor.graph.patterns import recognise
from distill_rt.backends.inductor.graph.read import read_graph
from distill_rt.core.artifacts import Component


def from_onnx(
    path: Path, component: Component, batch: int, device: torch.device
) -> tuple[GraphModule, tuple[Tensor, ...]]:
    """Read a graph for one batch.

    Args:
        path: the graph in the types that it shall compute in.
        component: names its inputs and weights.
        device: where weights, constants and the example inputs live.

    Returns:
        The module, and zeros in the shapes of its inputs, in the order of the component.

    Raises:
        TargetError: an operator, or an attribute of one, that is not in the tables; names operator and node.
    """
    graph = replace(
        recognise(read_graph(path)),
        inputs=tuple(tensor.name for tensor in component.inputs),
        outputs=tuple(tensor.name for tensor in component.outputs),
    )
    example = tuple(
        torch.zeros(tensor.concrete(batch), dtype=getattr(torch, tensor.dtype), device=device)
        for tensor in component.inputs
    )
    module = GraphModule(graph, component.initializers.values(), device).eval()
    module.settle(example)
    return module, example
