"""Which nodes are never quantised: on a graph that has one of each kind."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from distill_rt.core.artifacts import Component
from distill_rt.export.model_file import load_model
from distill_rt.export.quantize.placement import kept_nodes

Network = tuple[Path, Component]


def test_each_rule(network: Network) -> None:
    path, component = network
    assert kept_nodes(load_model(path), component) == {
        "time": "time",
        "conv_in": "first",
        "to_k": "first",
        "scores": "attention",
        "mix": "attention",
        "conv_out": "last",
    }, "middle, to_q and to_out are what is quantised"


def test_names_do_not_matter(network: Network) -> None:
    path, component = network
    model = onnx.load(str(path))
    for index, node in enumerate(model.graph.node):
        node.name = f"node_{index}"
    onnx.save(model, str(path))
    assert sorted(kept_nodes(load_model(path), component).values()) == [
        "attention",
        "attention",
        "first",
        "first",
        "last",
        "time",
    ]


def test_a_size_read_from_the_image_does_not_make_a_time_layer_a_feature(network: Network) -> None:
    """Exported graphs read B from the shape of the sample and expand the time to it."""
    path, component = network
    model = onnx.load(str(path))
    nodes = [
        onnx.helper.make_node("Shape", ["sample"], ["batch"], end=1),
        onnx.helper.make_node("Expand", ["time", "batch"], ["time_B"]),
    ]
    model.graph.node[0].input[0] = "time_B"
    for node in reversed(nodes):
        model.graph.node.insert(0, node)
    onnx.save(model, str(path))
    assert kept_nodes(load_model(path), component)["time"] == "time"


@pytest.mark.parametrize("kind", ["ConvTranspose", "Attention"])
def test_operators_without_a_kernel_stay(network: Network, kind: str) -> None:
    path, component = network
    model = onnx.load(str(path))
    for node in model.graph.node:
        if node.name == "middle":
            node.op_type = kind
    onnx.save(model, str(path))
    assert kept_nodes(load_model(path), component)["middle"] == "operator"
