"""Passes are pure and have an identity; targets name the operator that they lack."""

from __future__ import annotations

import onnx_ir as ir
import pytest
from handmade import make_ir, make_model, make_spec

from distill_rt.backends.registry import Target, backend_for
from distill_rt.core.errors import TargetError
from distill_rt.export.passes import Pass, check_operators, identities, run_passes
from distill_rt.export.rewrites import COMPILE_PASSES
from distill_rt.export.trajectory_graph import TRAJECTORY_PASSES, trajectory_recipe


def add_nodes(model: ir.Model, count: int = 1) -> ir.Model:
    for _ in range(count):
        model.graph.append(ir.node("Abs", [model.graph.inputs[0]]))
    return model


def test_a_pass_is_pure_and_shares_tensors() -> None:
    model = make_ir(make_model(make_spec()))
    num_nodes = len(model.graph)
    step = Pass(name="add-nodes", version=3, function=add_nodes, settings={"count": 2})
    result = run_passes(model, [step, step])
    assert (len(model.graph), len(result.graph)) == (num_nodes, num_nodes + 4)
    name = "conv_in.weight"
    assert result.graph.initializers[name].const_value is model.graph.initializers[name].const_value


def test_identity_tells_name_version_and_settings() -> None:
    steps = [
        Pass(name="a", version=1, function=add_nodes),
        Pass(name="b", version=2, function=add_nodes, settings={"n": 1}),
    ]
    assert identities(steps) == ["a/1", "b/2(n=1)"]
    assert trajectory_recipe().startswith("unroll/")
    assert all(step.identity in trajectory_recipe() for step in TRAJECTORY_PASSES)


@pytest.mark.parametrize("target", ["onnxruntime:cpu", "openvino:cpu"])
def test_backends_list_passes_of_this_version(target: str) -> None:
    assert set(backend_for(Target.parse(target)).rewrites) <= set(COMPILE_PASSES)


def test_a_missing_operator_is_named_with_its_node_and_its_pass() -> None:
    model = make_ir(make_model(make_spec()))
    check_operators(model, "toy:cpu")
    node = next(node for node in model.graph if node.op_type == "GroupNormalization")
    node.name = "norm1"
    with pytest.raises(TargetError, match="GroupNormalization at node norm1") as caught:
        check_operators(model, "toy:cpu", {"GroupNormalization"})
    assert "decompose-group-norm/1" in str(caught.value.hint)
    check_operators(COMPILE_PASSES["decompose-group-norm/1"](model), "toy:cpu", {"GroupNormalization"})


@pytest.mark.parametrize(("domain", "operator"), [("com.microsoft", "Gelu"), ("", "NoSuchOperator")])
def test_operators_that_no_target_is_sure_to_have(domain: str, operator: str) -> None:
    model = make_ir(make_model(make_spec()))
    last = list(model.graph)[-1]
    model.graph.insert_before(last, ir.Node(domain, operator, [last.inputs[0]], name="odd"))
    with pytest.raises(TargetError, match=f"{operator} at node odd"):
        check_operators(model, "toy:cpu")
