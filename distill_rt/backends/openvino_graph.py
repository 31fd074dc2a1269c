"""What is done to OpenVINO's graph of a component before it is compiled.

Legend: H attention heads, L queries, S keys.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_rt.core.spec import TensorSpec

HALVED_ELEMENTS = 4096
"""Constants with at least as many elements are stored as float16 in an engine that computes in bfloat16."""
HALVED_RANGE = (1e-3, 65504.0)
"""If their largest magnitude is in this range: float16 ends above it, and loses bits below 6e-5."""
CACHED_ELEMENTS = 1 << 20
"""Elements of a tensor (4 MiB in float32) that stays in a cache: a kernel for each elementwise operation costs little."""
MANY_OPERATIONS = 4000
"""C10 has 1,700 in a step, where to load fused kernels takes 0.1 s more, and 6,500 in four, where it takes 0.8
(docs/log.md)."""


def keep_scalars_exact(ov: Any, model: Any, inputs: Sequence[TensorSpec]) -> None:
    """Keep in float32 what is computed from per-image scalars (times, guidance) before the first matrix product, and in a
    trajectory what is computed from its noise: the state, which step mode keeps in float32 between two calls.

    OpenVINO leaves the tail of a graph in float32: everything between a result and the matrix products or convolutions
    before it. So the last tensors of the exact part become results too. They are a few hundred numbers that nobody reads,
    and the states.
    """
    heavy = {"MatMul", "Convolution", "ConvolutionBackpropData", "GroupConvolution", "Result"}
    features = {}
    exact = [
        model.input(spec.name).get_node()
        for spec in inputs
        if spec.dtype == "float32" and (len(spec.shape) == 1 or spec.name.startswith("noise"))
    ]
    # The shape of the noise is not computed from its values: through it lies every reshaped tensor of the network.
    for node in _computed_from(exact, but_not_through=heavy | {"ShapeOf"}):
        for output in node.outputs():
            if any(port.get_node().get_type_name() in heavy for port in output.get_target_inputs()):
                features[(node.get_friendly_name(), output.get_index())] = output
    if features:
        model.add_outputs(list(features.values()))


def store_half(ov: Any, core: Any, model: Any, out_dir: Path) -> Any:
    """The model with large weights stored as float16: half the blob, half the memory behind a loaded engine, no slower.

    They are rounded to bfloat16 anyway, which keeps 3 bits fewer. Small constants stay float32: frequencies of a time
    embedding, whose rounding a time of 999 would multiply, and scales. So do weights outside of float16's range.
    """
    kept = {
        node.get_friendly_name(): np.array(node.data)
        for node in model.get_ops()
        if node.get_type_name() == "Constant"
        and node.get_element_type() == ov.Type.f32
        and not (node.data.size >= HALVED_ELEMENTS and HALVED_RANGE[0] <= np.abs(node.data).max() <= HALVED_RANGE[1])
    }
    with tempfile.TemporaryDirectory(dir=out_dir) as directory:
        file = Path(directory) / "half.xml"
        ov.save_model(model, str(file), compress_to_fp16=True)
        halved = core.read_model(str(file))  # its weights are mapped: they stay readable when the file is gone
    for node in halved.get_ops():
        # A compressed constant is a conversion with the name that the constant had.
        if node.get_type_name() == "Convert" and node.get_friendly_name() in kept:
            exact = ov.op.Constant(kept[node.get_friendly_name()])
            exact.set_friendly_name(node.get_friendly_name())
            node.output(0).replace(exact.output(0))
    return halved


def has_many_small_operations(model: Any) -> bool:
    """Whether many operations depend on the inputs, and all results, attention's scores (H, L, S) included, are small."""
    number = 0
    for node in _computed_from(parameter.get_node() for parameter in model.inputs):
        number += 1
        shapes = [output.get_partial_shape() for output in node.outputs()]
        if node.get_type_name() == "ScaledDotProductAttention":
            queries, keys = node.input(0).get_partial_shape(), node.input(1).get_partial_shape()
            shapes.append(type(queries)([*list(queries)[:-1], list(keys)[-2]]))
        if any(shape.is_dynamic or math.prod(shape.to_shape()) > CACHED_ELEMENTS for shape in shapes):
            return False
    return number > MANY_OPERATIONS


def _computed_from(nodes: Iterable[Any], *, but_not_through: Collection[str] = ()) -> Iterator[Any]:
    """These nodes and all that depend on them, once each; operations of the types `but_not_through` end the search."""
    pending, seen = list(nodes), set()
    while pending:
        node = pending.pop()
        if node.get_friendly_name() in seen:
            continue
        seen.add(node.get_friendly_name())
        yield node
        consumers = [port.get_node() for output in node.outputs() for port in output.get_target_inputs()]
        pending += [consumer for consumer in consumers if consumer.get_type_name() not in but_not_through]
