"""The reuse wire: in some rows a module is not computed; those who read it get what an earlier row computed.

One primitive covers the training-free caches: DeepCache (Ma et al. 2023, arXiv 2312.00858) reuses what enters an up-block,
FORA (Selvaraju et al. 2024, arXiv 2407.01425) attention and feed-forward outputs, Delta-DiT (Chen et al. 2024, arXiv
2406.01125) the change that blocks make, Block Caching (Wimbauer et al. 2023, arXiv 2312.03209) with a scale and a shift per
channel. In an unrolled graph a cache is an edge: nothing decides at run time, and what no longer has a reader is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from distill_rt.core.errors import UsageError
from distill_rt.core.optional import require
from distill_rt.export.passes.constants import add_initializer
from distill_rt.export.passes.interface import Pass
from distill_rt.export.passes.scopes import ModuleRow
from distill_rt.export.passes.share import remove_dead

if TYPE_CHECKING:
    import onnx_ir as ir

Map = Literal["identity", "delta", "affine"]
REUSE_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Reuse:
    """Row `row` does not compute `module` but takes it from row `source`.

    Args:
        module: by its dotted name in the network, such as ``backbone.up_blocks.0``.
        row, source: indices into the step table, source < row. A source that itself reuses passes on what it got.
        map: ``identity``: the output v of the source; ``delta``: own input + (output - input) of the source; ``affine``:
            scale * v + shift.
        scale, shift: one per channel, for ``affine``.
    """

    module: str
    row: int
    source: int
    map: Map = "identity"
    scale: tuple[float, ...] = ()
    shift: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.source < self.row:
            raise ValueError(f"a row reuses an earlier one, got row {self.row} and source {self.source}")
        if self.map not in ("identity", "delta", "affine"):
            raise ValueError(f"map must be identity, delta or affine, got {self.map!r}")
        if bool(self.scale) != (self.map == "affine") or len(self.scale) != len(self.shift):
            raise ValueError("scale and shift belong to the map affine, one of each per channel")

    def to_json(self) -> dict[str, Any]:
        wire: dict[str, Any] = {"module": self.module, "row": self.row, "source": self.source, "map": self.map}
        if self.map == "affine":
            wire["scale"], wire["shift"] = list(self.scale), list(self.shift)
        return wire

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        values = dict(data)
        for name in ("scale", "shift"):
            values[name] = tuple(data.get(name, ()))
        return cls(**values)


def reuse_pass(wires: Sequence[Reuse]) -> Pass:
    """The wires as a pass on an unrolled trajectory."""
    settings = {"wires": [wire.to_json() for wire in sorted(wires, key=lambda wire: (wire.row, wire.module))]}
    return Pass(name="reuse", version=REUSE_VERSION, function=reuse, settings=settings)


def reuse(model: ir.Model, *, wires: Sequence[dict[str, Any]]) -> ir.Model:
    """Rewire a trajectory graph and remove what nobody reads any more.

    Args:
        model: as `distill_rt.export.passes.unroll.unroll` returns it, before any other pass has moved its nodes.
        wires: `Reuse.to_json`, by ascending row.

    Raises:
        UsageError: no such row or module, or the two rows give it different shapes (another network).
    """
    parsed = [Reuse.from_json(wire) for wire in wires]
    rows = {i: ModuleRow(model.graph, i) for wire in parsed for i in (wire.row, wire.source)}
    # Before any wire is drawn: afterwards a module may have no reader, or its input another producer.
    outputs = {(wire.module, i): rows[i].output(wire.module) for wire in parsed for i in (wire.row, wire.source)}
    inputs = {
        (wire.module, i): rows[i].input(wire.module)
        for wire in parsed
        if wire.map == "delta"
        for i in (wire.row, wire.source)
    }
    drawn: dict[ir.Value, ir.Value] = {}

    def current(value: ir.Value) -> ir.Value:
        return drawn.get(value, value)

    for wire in parsed:
        old, source = outputs[wire.module, wire.row], outputs[wire.module, wire.source]
        if old.shape != source.shape or old.dtype != source.dtype:
            raise UsageError(
                f"{wire.module} gives {source.shape} in row {wire.source} and {old.shape} in row {wire.row}",
                code="reuse-shape",
                hint="a wire joins rows of one network",
            )
        if wire.map == "identity":
            new = current(source)
        elif wire.map == "affine":
            new = _affine(model.graph, wire, current(source), old)
        else:
            entered = current(inputs[wire.module, wire.row]), current(inputs[wire.module, wire.source])
            new = _delta(model.graph, wire, entered, current(source), old)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        drawn[old] = new
    return remove_dead(model)


def _delta(
    graph: ir.Graph, wire: Reuse, entered: tuple[ir.Value, ir.Value], source: ir.Value, old: ir.Value
) -> ir.Value:
    """``h_in + (h_out' - h_in')``."""
    own, other = entered
    name = f"row{wire.row}/reuse/{wire.module}"
    change = _insert(graph, f"{name}/change", "Sub", source, other, like=old)
    return _insert(graph, f"{name}/changed", "Add", own, change, like=old)


def _affine(graph: ir.Graph, wire: Reuse, source: ir.Value, old: ir.Value) -> ir.Value:
    """``scale * v + shift`` per channel."""
    assert old.shape is not None
    axis = channel_axis(len(old.shape))
    if old.shape[axis] != len(wire.scale):
        raise UsageError(
            f"{wire.module} has {old.shape[axis]} channels, the wire {len(wire.scale)}", code="reuse-channels"
        )
    shape = [len(wire.scale) if i == axis else 1 for i in range(len(old.shape))]
    name = f"row{wire.row}/reuse/{wire.module}"
    scale, shift = (
        add_initializer(graph, f"{name}/{what}", np.asarray(values, np.float32).reshape(shape))
        for what, values in (("scale", wire.scale), ("shift", wire.shift))
    )
    scaled = _insert(graph, f"{name}/scaled", "Mul", source, scale, like=old)
    return _insert(graph, f"{name}/shifted", "Add", scaled, shift, like=old)


def channel_axis(rank: int) -> int:
    """Feature maps (B, C, H, W) have their channels second, tokens (B, N, C) last."""
    return 1 if rank == 4 else rank - 1


def _insert(graph: ir.Graph, name: str, kind: str, first: ir.Value, second: ir.Value, *, like: ir.Value) -> ir.Value:
    """A node before the producer of the value that it stands for."""
    onnx_ir = require("onnx_ir", extra="export")
    node = onnx_ir.node(kind, [first, second], name=name)
    (output,) = node.outputs
    output.name, output.type, output.shape = name, like.type, like.shape
    producer = like.producer()
    assert producer is not None
    graph.insert_before(producer, node)
    result: ir.Value = output
    return result
