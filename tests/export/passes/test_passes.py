"""Passes are pure and have an identity; targets name the operator that they lack."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from handmade import make_ir, make_model, make_spec, write_bundle
from onnx import helper, numpy_helper

from distill_rt.backends.registry import Target, backend_for
from distill_rt.core.errors import TargetError
from distill_rt.export import compile_bundle
from distill_rt.export.passes import Pass, check_operators, identities, run_passes, with_node
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


def test_a_missing_operator_is_named_with_its_node_and_its_pass(tmp_path: Path) -> None:
    model = make_ir(make_model(make_spec()))
    check_operators(model, "toy:cpu")
    node = next(node for node in model.graph if node.op_type == "GroupNormalization")
    node.name = "norm1"
    ir.save(model, tmp_path / "network.onnx")
    refusal = TargetError("no kernel", code="compiler-refused", details={"operators": ["GroupNormalization"]})
    error = with_node(refusal, tmp_path / "network.onnx", "toy:cpu")
    assert "GroupNormalization at node norm1: toy:cpu has no such operator (no kernel)" in error.message
    assert "decompose-group-norm/1" in error.hint
    other = TargetError("out of luck", code="compiler-refused")
    assert with_node(other, tmp_path / "network.onnx", "toy:cpu") is other


@pytest.mark.parametrize(("target", "operator"), [("onnxruntime:cpu", "ImageDecoder"), ("openvino:cpu", "MaxUnpool")])
def test_a_compiler_without_an_operator(target: str, operator: str, tmp_path: Path) -> None:
    """Which operators it lacks changes with every release: it is asked, not looked up."""

    def edit(model: onnx.ModelProto) -> None:
        (output,) = model.graph.output
        last = next(node for node in model.graph.node if output.name in node.output)
        model.graph.node.remove(last)
        inner = helper.make_node(last.op_type, list(last.input), ["before"])
        inner.attribute.extend(last.attribute)
        if operator == "MaxUnpool":
            window = {"kernel_shape": [1, 1]}
            nodes = [
                helper.make_node("MaxPool", ["before"], ["top", "indices"], **window),
                helper.make_node("MaxUnpool", ["top", "indices"], [output.name], name="odd", **window),
            ]
        else:
            nodes = [
                helper.make_node("Constant", [], ["file"], value=numpy_helper.from_array(np.zeros(4, np.uint8))),
                helper.make_node("ImageDecoder", ["file"], ["picture"], name="odd"),
                helper.make_node("Cast", ["picture"], ["numbers"], to=onnx.TensorProto.FLOAT),
                helper.make_node("ReduceSum", ["numbers"], ["number"], keepdims=0),
                helper.make_node("Add", ["before", "number"], [output.name]),
            ]
        model.graph.node.extend([inner, *nodes])

    bundle = write_bundle(tmp_path / "x.bundle", edit_model=edit)
    with pytest.raises(TargetError, match=f"operator {operator} at node odd: {target} has no such operator") as caught:
        compile_bundle(bundle, target, tmp_path / "x.engine", use_cache=False)
    assert caught.value.code == "operator-unsupported"
    assert not (tmp_path / "x.engine").exists()


@pytest.mark.parametrize(("domain", "operator"), [("com.microsoft", "Gelu"), ("", "NoSuchOperator")])
def test_operators_that_no_target_is_sure_to_have(domain: str, operator: str) -> None:
    model = make_ir(make_model(make_spec()))
    last = list(model.graph)[-1]
    model.graph.insert_before(last, ir.Node(domain, operator, [last.inputs[0]], name="odd"))
    with pytest.raises(TargetError, match=f"{operator} at node odd"):
        check_operators(model, "toy:cpu")
