"""ONNX file -> TensorRT network, strongly typed, or the node that it cannot take."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_rt.backends.tensorrt.library import Library
from distill_rt.backends.tensorrt.log import Log
from distill_rt.core.errors import TargetError

MAX_PARSER_ERRORS = 3


def parse_network(library: Library, log: Log, builder: Any, onnx_path: Path) -> Any:
    """Parse a graph. Attention that has no fused kernel may be decomposed.

    Args:
        onnx_path: external data is looked for beside it.

    Returns:
        INetworkDefinition. It must not outlive `builder` and `log`.

    Raises:
        TargetError: names the node and operator that TensorRT does not take.
    """
    trt = library.trt
    # A strongly typed network takes its precision from the graph; later releases know no other kind. By name, because the
    # literal number means something else in every release.
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    if network is None:
        raise log.refuse("does not start a network", hint="reinstall it", code="compiler-broken")
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse_from_file(str(onnx_path)):
        raise _parser_error(log, parser, onnx_path)
    _allow_decomposition(library, network)
    return network


def count_attention(library: Library, network: Any) -> int:
    """Attentions of a network: a Softmax, or an attention layer where the release has one."""
    trt = library.trt
    kinds = [trt.LayerType.SOFTMAX]
    if library.has("attention-layers"):
        kinds.append(trt.LayerType.ATTENTION_INPUT)
    return sum(network.get_layer(index).type in kinds for index in range(network.num_layers))


def _allow_decomposition(library: Library, network: Any) -> None:
    """An ONNX Attention without a dedicated kernel (float32, head sizes beyond 256) fails the build unless it may be split into
    products and a softmax; where a kernel exists, this changes nothing."""
    if not library.has("attention-layers"):
        return
    trt = library.trt
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type == trt.LayerType.ATTENTION_INPUT:
            layer.__class__ = trt.IAttentionInputLayer  # get_layer answers the base class
            attention = layer.attention
            attention.decomposable = True


def _parser_error(log: Log, parser: Any, onnx_path: Path) -> TargetError:
    found = []
    for index in range(min(parser.num_errors, MAX_PARSER_ERRORS)):
        problem = parser.get_error(index)
        found.append(
            {
                "node": problem.node_name(),
                "operator": problem.node_operator(),
                "reason": " ".join(problem.desc().split()),
            }
        )
    first = found[0] if found else {"node": "", "operator": "", "reason": ""}
    where = f"node {first['node'] or '(unnamed)'} ({first['operator']}): " if first["operator"] else ""
    error = log.refuse(
        f"cannot read {onnx_path.name}",
        hint="choose another target, or replace that operator in the network",
        code="operator-unsupported" if first["operator"] else "compiler-refused",
        reasons=[f"{where}{first['reason']}"] if first["reason"] else (),
    )
    error.details["nodes"] = found
    return error
