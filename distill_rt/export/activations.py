"""How much memory a graph's intermediate values need at once, read from its shapes: known before any GPU is asked.

An upper bound: every node's output has memory of its own from its node to its last reader, in the order of the graph. A
compiler that fuses nodes needs less.

Legend: B evaluations of a network per call.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from distill_rt.core.optional import require


def peak_activation_bytes(path: Path, batch: int, float_bytes: int) -> int:
    """Largest sum of the values that are alive at one node of a graph file, in bytes.

    Args:
        path: as exported, with the shapes that torch knew: ONNX itself infers none behind GroupNormalization.
        batch: what the symbol ``B`` stands for. Values whose shape cannot be told from it do not count.
        float_bytes: of one number where the graph says float32.
    """
    onnx = require("onnx", extra="cpu")
    model = onnx.load(str(path), load_external_data=False)
    graph = onnx.shape_inference.infer_shapes(model).graph
    sizes = {value.name: _num_bytes(onnx, value, batch, float_bytes) for value in [*graph.value_info, *graph.output]}
    last_read = {name: i for i, node in enumerate(graph.node) for name in node.input}
    alive = peak = 0
    for i, node in enumerate(graph.node):
        alive += sum(sizes.get(name, 0) for name in node.output)
        peak = max(peak, alive)
        done = {name for name in (*node.input, *node.output) if last_read.get(name, i) == i}
        alive -= sum(sizes.get(name, 0) for name in done if name in sizes)
    return peak


def _num_bytes(onnx: Any, value: Any, batch: int, float_bytes: int) -> int:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return 0
    count = 1
    for dim in tensor.shape.dim:
        if dim.HasField("dim_value"):
            count *= dim.dim_value
        elif dim.dim_param == "B":
            count *= batch
        else:
            return 0
    if tensor.elem_type == onnx.TensorProto.FLOAT:
        return count * float_bytes
    return count * int(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize)
