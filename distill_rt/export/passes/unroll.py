"""All rows of one plan as one graph: noise, condition and guidance in, images out.

The graphs of the networks are copied once per row that calls them; weights exist once. What a row fixes (time, second time, the
unconditional label) is a constant whose name starts with ``given/``, spread over the batch by an Expand;
`distill_rt.export.passes.fold` computes what follows from it.

Legend: B images, N evaluations per network call (2B under cfg: [uncond, cond]).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from distill_rt.core.optional import require
from distill_rt.core.spec import DECODER, TEXT_ENCODER, Dtype, StudentSpec, TensorSpec
from distill_rt.core.table import Row
from distill_rt.export.passes.row_graph import State, combine_guidance, run_row, scaled, to_pixels
from distill_rt.export.passes.writer import GraphWriter, declare

if TYPE_CHECKING:
    import onnx_ir as ir

UNROLL_VERSION = 1
"""Raise it when the same plan starts to give another graph."""
GIVEN = "given/"
"""Prefix of the constants that a row fixes."""


def unroll(components: Mapping[str, ir.Model], spec: StudentSpec, steps: int, *, pixels: bool = True) -> ir.Model:
    """One graph of a whole plan.

    Args:
        components: the graphs of `spec.components()`; they stay as they are.
        steps: a key of `spec.plans`.
        pixels: False ends with float32 ``images`` (B, C, H, W) before the conversion to bytes, to compare with.

    Returns:
        Inputs and output of `spec.trajectory(steps)`. Weights are shared with `components` and named ``<component>.<name>``.

    Raises:
        ArtifactError: a component has branches or loops.
    """
    return _Unroller(components, spec, steps).run(pixels)


class _Unroller:
    def __init__(self, components: Mapping[str, ir.Model], spec: StudentSpec, steps: int) -> None:
        self._ir = require("onnx_ir", extra="export")
        self.components, self.spec, self.table = components, spec, spec.plans[steps]
        ((inputs, (self.output,)),) = spec.trajectory(steps).values()
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
        images = state.x if self.spec.decoder is None else self._copy(DECODER, {"latent": state.x}, "B")
        images = to_pixels(graph, images) if pixels else graph.op("Identity", images)
        declare(images, self.output if pixels else _float("B", *self.spec.image_shape))
        images.name = self.output.name
        opsets = {model.opset_imports[""] for model in self.components.values()}
        assert len(opsets) == 1, opsets  # one exporter wrote them all
        return graph.model(
            [images],
            name=f"{len(table.rows)}-row trajectory",
            opset=opsets.pop(),
            ir_version=max(model.ir_version for model in self.components.values()),
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
        if "tokens" in self.inputs:
            text = self._copy(TEXT_ENCODER, {"tokens": self.inputs["tokens"]}, "B")
            if self.cfg:
                _, length, width = text_shape = ("N", self.spec.condition.num_tokens, self.spec.condition.width)
                graph.scope = "null_text/"
                tokens = np.array([self.spec.condition.null_tokens], np.int64)
                null = self._copy(
                    TEXT_ENCODER, {"tokens": graph.initializer(f"{GIVEN}null_tokens", self._ir.tensor(tokens))}, 1
                )
                graph.scope = "condition/"
                target = graph.op("Concat", self._rows("B"), graph.constant([length, width], np.int64), axis=0)
                null = graph.op("Expand", null, target, like=_float("B", length, width))
                text = graph.op("Concat", null, text, axis=0, like=_float(*text_shape))
            conditions["text"] = text
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
        F = self._copy(f"network{row.net_id}", feeds, self.batch)
        if not self.cfg:
            return F
        return combine_guidance(graph, F, self.inputs["guidance"], rescale=self.spec.guidance.rescale)

    def _copy(self, component: str, feeds: Mapping[str, ir.Value], batch: str | int) -> ir.Value:
        """The output of one more copy of a component."""
        (output,) = self.graph.copy(self.components[component].graph, feeds, f"{component}.", batch).values()
        return output

    def _rows(self, batch: str) -> ir.Value:
        """The number of images or evaluations, shape (1,)."""
        rows: ir.Value = self.graph.op("Shape", self.inputs["noise"], start=0, end=1)
        return self.graph.op("Mul", rows, self.graph.constant([2], np.int64)) if batch == "N" else rows

    def _spread(self, name: str, value: Any, batch: str) -> ir.Value:
        """A constant with one row, once per image or per evaluation."""
        constant = self.graph.initializer(GIVEN + name, self._ir.tensor(value))
        dtype: Dtype = "int64" if value.dtype == np.int64 else "float32"
        spread = TensorSpec(name="", dtype=dtype, shape=(batch, *value.shape[1:]))
        result: ir.Value = self.graph.op("Expand", constant, self._rows(batch), like=spread)
        return result

    def _input(self, tensor: TensorSpec) -> ir.Value:
        value: ir.Value = self._ir.Value(name=tensor.name)
        declare(value, tensor)
        return value


def _float(*shape: int | str) -> TensorSpec:
    return TensorSpec(name="", dtype="float32", shape=shape)
