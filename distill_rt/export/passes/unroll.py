"""All rows of one plan as one graph: noise, condition and guidance in, images out.

The graphs of the networks are copied once per row that calls them; weights exist once. What a row fixes (time, second time, the
unconditional label) is a constant whose name starts with ``given/``, spread over the batch by an Expand;
`distill_rt.export.passes.fold` computes what follows from it.

Legend: B images, N evaluations per network call (2B under cfg: [uncond, cond]).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distill_rt.core.optional import require
from distill_rt.core.spec import Dtype, StudentSpec, TensorSpec
from distill_rt.core.table import Row, StepTable
from distill_rt.export.passes.row_graph import State, combine_guidance, run_row, scaled, to_pixels
from distill_rt.export.passes.writer import GraphWriter, declare

if TYPE_CHECKING:
    import onnx_ir as ir

UNROLL_VERSION = 1
"""Raise it when the same plan starts to give another graph."""
GIVEN = "given/"
"""Prefix of the constants that a row fixes."""


def trajectory_inputs(spec: StudentSpec, steps: int) -> tuple[TensorSpec, ...]:
    """Inputs of the trajectory graph of a plan: noise of every stream it draws, then what a request chooses."""
    streams = sorted({row.stream for row in spec.plans[steps].rows if row.n})
    image = ("B", *spec.sample_shape)
    inputs = [TensorSpec(name="noise", dtype="float32", shape=image)]
    inputs += [TensorSpec(name=f"noise_{stream}", dtype="float32", shape=image) for stream in streams]
    if spec.condition.kind == "label":
        inputs.append(TensorSpec(name="label", dtype="int64", shape=("B",)))
    if spec.guidance.mode != "none":
        inputs.append(TensorSpec(name="guidance", dtype="float32", shape=("B",)))
    return tuple(inputs)


def trajectory_outputs(spec: StudentSpec) -> tuple[TensorSpec, ...]:
    channels, height, width = spec.sample_shape
    return (TensorSpec(name="images", dtype="uint8", shape=("B", height, width, channels)),)


def unroll(networks: Sequence[ir.Model], spec: StudentSpec, steps: int, *, pixels: bool = True) -> ir.Model:
    """One graph of a whole plan.

    Args:
        networks: one graph per network of the contract, inputs `spec.network_inputs()`; they stay as they are.
        steps: a key of `spec.plans`.
        pixels: False ends with float32 ``images`` (B, C, H, W) before the conversion to bytes, to compare with.

    Returns:
        Inputs `trajectory_inputs`, output `trajectory_outputs`. Weights are shared with `networks`, named
        ``network<i>.<name>``.

    Raises:
        ArtifactError: a network has branches or loops.
    """
    return _Unroller(networks, spec, spec.plans[steps], trajectory_inputs(spec, steps)).run(pixels)


class _Unroller:
    def __init__(
        self, networks: Sequence[ir.Model], spec: StudentSpec, table: StepTable, inputs: Sequence[TensorSpec]
    ) -> None:
        self._ir = require("onnx_ir", extra="export")
        self.networks, self.spec, self.table = networks, spec, table
        self.inputs = {tensor.name: self._input(tensor) for tensor in inputs}
        self.graph = GraphWriter(list(self.inputs.values()))
        self.cfg = spec.guidance.mode == "cfg"
        self.batch = "N" if self.cfg else "B"

    def run(self, pixels: bool) -> ir.Model:
        graph, table = self.graph, self.table
        num_elements = int(np.prod(self.spec.sample_shape))
        conditions = self._conditions()
        state = State(x=scaled(graph, table.init_scale, self.inputs["noise"]))
        for i, row in enumerate(table.rows):
            graph.scope = f"row{i}/"
            F = self._call_network(i, row, state.x, conditions) if row.calls_network else None
            z = self.inputs[f"noise_{row.stream}"] if row.n else None
            state = run_row(graph, row, state, F, z, num_elements=num_elements, keeps_x0=bool(table.num_history))
        graph.scope = "images/"
        images = to_pixels(graph, state.x) if pixels else graph.op("Identity", state.x)
        (output,) = trajectory_outputs(self.spec)
        declare(images, output if pixels else _float("B", *self.spec.sample_shape))
        images.name = output.name
        first = self.networks[0]
        return graph.model(
            [images],
            name=f"{len(table.rows)}-row trajectory",
            opset=max(model.opset_imports[""] for model in self.networks),
            ir_version=first.ir_version,
        )

    def _conditions(self) -> dict[str, ir.Value]:
        """What every row feeds its network beside the state and its times, N rows each."""
        graph = self.graph
        graph.scope = "condition/"
        conditions: dict[str, ir.Value] = {}
        if "label" in self.inputs:
            label = self.inputs["label"]
            if self.cfg:
                assert self.spec.condition.null_label is not None
                null = self._spread("null_label", np.array([self.spec.condition.null_label], np.int64), "B")
                label = graph.op("Concat", null, label, axis=0, like=TensorSpec(name="", dtype="int64", shape=("N",)))
            conditions["label"] = label
        if self.spec.guidance.mode == "embedded":
            conditions["guidance"] = self.inputs["guidance"]
        return conditions

    def _call_network(self, i: int, row: Row, x: ir.Value, conditions: dict[str, ir.Value]) -> ir.Value:
        """Guided output of row i's network."""
        graph = self.graph
        sample = scaled(graph, row.c_in, x)
        if self.cfg:
            sample = graph.op("Concat", sample, sample, axis=0, like=_float("N", *self.spec.sample_shape))
        second_time = row.time if row.second_time is None else row.second_time
        feeds: dict[str, Any] = {"sample": sample, **conditions}
        feeds["time"] = self._spread(f"row{i}/time", np.array([row.time], np.float32), self.batch)
        if self.spec.uses_second_time:
            feeds["second_time"] = self._spread(f"row{i}/second_time", np.array([second_time], np.float32), self.batch)
        source = self.networks[row.net_id].graph
        (F,) = graph.copy(source, feeds, f"network{row.net_id}.", self.batch).values()
        if not self.cfg:
            return F
        return combine_guidance(graph, F, self.inputs["guidance"], rescale=self.spec.guidance.rescale)

    def _spread(self, name: str, value: Any, batch: str) -> ir.Value:
        """A constant with one row, once per image or per evaluation."""
        constant = self.graph.initializer(GIVEN + name, self._ir.tensor(value))
        rows = self.graph.op("Shape", self.inputs["noise"], start=0, end=1)
        if batch == "N":
            rows = self.graph.op("Mul", rows, self.graph.constant([2], np.int64))
        dtype: Dtype = "int64" if value.dtype == np.int64 else "float32"
        spread = TensorSpec(name="", dtype=dtype, shape=(batch, *value.shape[1:]))
        result: ir.Value = self.graph.op("Expand", constant, rows, like=spread)
        return result

    def _input(self, tensor: TensorSpec) -> ir.Value:
        value: ir.Value = self._ir.Value(name=tensor.name)
        declare(value, tensor)
        return value


def _float(*shape: int | str) -> TensorSpec:
    return TensorSpec(name="", dtype="float32", shape=shape)
