"""Reuse wires: exact where the rows are the same, nothing dead stays, weights exist once, bad wires are named."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from handmade import make_ir, make_model, make_spec
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import Row, StepTable
from distill_rt.export.passes.reuse import Reuse, reuse_pass
from distill_rt.export.passes.scopes import SCOPES, ModuleRow
from distill_rt.export.passes.unroll import unroll
from distill_rt.export.trajectory_graph import TRAJECTORY_PASSES

Array = NDArray[Any]

STEPS = 4
MODULES = {
    "h0": "conv_in",
    "h1": "body.norm",
    "h2": "body",
    "gate": "body.act",
    "h3": "body.act",
    "prediction": "conv_out",
}
STILL = StepTable(
    rows=(Row(time=500.0, r=1.0, g=0.0), Row(time=500.0, r=1.0, g=0.0), Row(time=500.0, r=0.3, g=0.7)),
)
"""Three rows that see the same state: those that reuse get what they would have computed."""


def student(table: StepTable | None = None) -> tuple[StudentSpec, ir.Model]:
    """The handmade network, with the modules that torch's exporter would have written into its nodes."""
    spec = make_spec("none")
    if table is not None:
        spec = dataclasses.replace(spec, plans={STEPS: table})
    model = make_ir(make_model(spec))
    for node in model.graph:
        module = MODULES.get(str(node.outputs[0].name), "")
        parts = module.split(".") if module else []
        chain = ["", "net", *(f"net.__dict__['_modules']['{'.'.join(parts[: i + 1])}']" for i in range(len(parts)))]
        node.metadata_props[SCOPES] = repr([*chain, node.name])
    return spec, model


def unrolled(table: StepTable | None = None) -> ir.Model:
    spec, model = student(table)
    return unroll({"network0": model}, spec, STEPS, pixels=False)


def run(model: ir.Model, passes: Sequence[Any] = TRAJECTORY_PASSES) -> Array:
    for step in passes:
        model = step(model)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    noise = np.random.default_rng(0).standard_normal((2, 1, 4, 4)).astype(np.float32)
    output: Array = session.run(None, {"noise": noise, "label": np.array([0, 2])})[0]
    return output


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def wire(row: int, source: int, module: str = "net.body", **changes: Any) -> Reuse:
    return Reuse(module=module, row=row, source=source, **changes)


AFFINE: dict[str, Any] = {"map": "affine", "scale": (1.0,) * 16, "shift": (0.0,) * 16}


@pytest.mark.parametrize("changes", [{}, {"map": "delta"}, AFFINE], ids=["identity", "delta", "affine"])
@pytest.mark.parametrize("sources", [(0, 0), (0, 1)], ids=["same source", "chain"])
def test_exact_where_the_rows_are_the_same(changes: dict[str, Any], sources: tuple[int, int]) -> None:
    model = unrolled(STILL)
    wired = reuse_pass([wire(i + 1, j, **changes) for i, j in enumerate(sources)])(model)
    assert operators(model)["GroupNormalization"] == 3
    assert operators(wired)["GroupNormalization"] == 1
    # h_in + (h_out - h_in) is not h_out to the last bit.
    np.testing.assert_allclose(run(wired), run(model), rtol=0, atol=1e-6 if changes.get("map") == "delta" else 0)


def test_the_reused_value_is_that_of_the_source() -> None:
    """With different times the images differ, and scaling the reused value by 0 is as good as having none."""
    model = unrolled()
    plain, wired = run(model), run(reuse_pass([wire(2, 1)])(model))
    assert np.abs(plain - wired).max() > 1e-3
    chained = reuse_pass([wire(1, 0), wire(2, 1)])(model)
    for graph, source in ((reuse_pass([wire(2, 1)])(model).graph, "row1/h3"), (chained.graph, "row0/h3")):
        (last,) = (node for node in graph if node.name and node.outputs[0].name == "row2/prediction")
        assert last.inputs[0] is not None
        assert last.inputs[0].name == source


def test_scale_and_shift_are_per_channel() -> None:
    model = unrolled()
    shift = tuple(np.linspace(-1, 1, 16))
    wires = [wire(2, source, map="affine", scale=(0.0,) * 16, shift=shift) for source in (0, 1)]
    from_zero, from_one = (run(reuse_pass([item])(model)) for item in wires)
    np.testing.assert_array_equal(from_zero, from_one)
    backwards = wire(2, 1, map="affine", scale=(0.0,) * 16, shift=shift[::-1])
    assert np.abs(from_one - run(reuse_pass([backwards])(model))).max() > 1e-3


def test_the_change_of_a_module_is_added_to_its_own_input() -> None:
    model = unrolled()
    wired = reuse_pass([wire(1, 0, map="delta")])(model)
    row = ModuleRow(wired.graph, 1)
    (added,) = (node for node in wired.graph if node.name == "row1/reuse/net.body/changed")
    assert added.inputs[0] is row.output("net.conv_in")
    assert np.abs(run(wired) - run(reuse_pass([wire(1, 0)])(model))).max() > 1e-3


def test_nothing_dead_stays_and_weights_exist_once() -> None:
    model = unrolled()
    wired = reuse_pass([wire(i, 0) for i in (1, 2, 3)])(model)
    assert operators(wired)["GroupNormalization"] == operators(wired)["Sigmoid"] == 1
    assert operators(wired)["Conv"] == 5  # conv_in of row 0, conv_out of all rows
    for name, value in wired.graph.initializers.items():
        assert value.const_value is model.graph.initializers[name].const_value
    assert all(value.uses() for value in wired.graph.initializers.values())
    assert operators(model)["GroupNormalization"] == 4  # the model that went in is as it was
    run(wired)


def test_settings_are_part_of_the_identity() -> None:
    one, two = reuse_pass([wire(1, 0)]), reuse_pass([wire(2, 0)])
    assert one.identity.startswith("reuse/1(")
    assert len({one.identity, two.identity, reuse_pass([wire(1, 0, **AFFINE)]).identity}) == 3
    assert len(one.identity) < 40
    assert Reuse.from_json(wire(1, 0, **AFFINE).to_json()) == wire(1, 0, **AFFINE)


def test_modules_of_a_row() -> None:
    row = ModuleRow(unrolled().graph, 1)
    assert row.names == ["net", "net.conv_in", "net.body", "net.body.norm", "net.body.act", "net.conv_out"]
    assert row.output("net.body").name == "row1/h3"
    assert row.input("net.body").name == "row1/h0"


def test_wires_that_do_not_fit_are_refused() -> None:
    model = unrolled()
    with pytest.raises(UsageError, match=r"row 1 has no module 'net.up'.*net\.body"):
        reuse_pass([wire(1, 0, "net.up")])(model)
    with pytest.raises(UsageError, match="16 channels, the wire 3"):
        reuse_pass([wire(1, 0, map="affine", scale=(1.0,) * 3, shift=(0.0,) * 3)])(model)
    with pytest.raises(UsageError, match="no change can be reused"):
        reuse_pass([wire(1, 0, "net.conv_out", map="delta")])(model)
    with pytest.raises(UsageError, match="row 9 has no module"):
        reuse_pass([wire(9, 0)])(model)
    for bad in ({"row": 1, "source": 1}, {"row": 1, "source": 0, "map": "affine"}, {"row": 1, "source": 0, "map": "x"}):
        with pytest.raises(ValueError, match=r"reuses|belong|must be"):
            wire(**bad)
