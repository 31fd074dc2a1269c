"""Real TensorRT-RTX builds, without a GPU: several GPUs, precisions, shapes, and graphs that it cannot take.

What a plan computes is not tested here: nothing can run one without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from distill_rt.backends.tensorrt.builder import BuildOptions, build_plan
from distill_rt.backends.tensorrt.library import Library
from distill_rt.backends.tensorrt.profiles import Profile, make_profiles
from distill_rt.backends.tensorrt.refit import named_weights, refittable_weights
from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.errors import TargetError, UsageError
from distill_rt.core.spec import TensorSpec
from distill_rt.export.precision import typed_graph

HEADER = b"vtrt"
X = (TensorSpec(name="x", dtype="float32", shape=("B", 8)),)
ONE_BATCH = make_profiles([{"B": 1}])
SM89 = BuildOptions(capabilities=(89,))
TEXT_BUCKETS = [{"B": 2, "H": 16, "W": 16}, {"B": 8, "H": 16, "W": 24}]


def graph(path: Path, nodes: list[Any], initializers: dict[str, Any], inputs: tuple[TensorSpec, ...] = X) -> Path:
    """A small graph with the output y."""
    kinds = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}
    values = [helper.make_tensor_value_info(item.name, kinds[item.dtype], item.shape) for item in inputs]
    output = helper.make_tensor_value_info("y", kinds[inputs[0].dtype], None)
    weights = [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers.items()]
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid("nobody", 1)]
    made = helper.make_graph(nodes, "small", values, [output], weights)
    onnx.save(helper.make_model(made, opset_imports=opsets, ir_version=10), str(path))
    return path


def refused(rtx: Library, path: Path, **changes: Any) -> TargetError:
    arguments: dict[str, Any] = {"inputs": X, "profiles": ONE_BATCH, "options": SM89} | changes
    with pytest.raises(TargetError) as caught:
        build_plan(rtx, path, **arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.message.startswith("TensorRT-RTX 1.")
    assert caught.value.hint
    assert "cudaError" not in caught.value.message, "the missing GPU is not what is wrong"
    return caught.value


# -- a text-conditioned UNet ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capabilities", "precision", "fused"),
    [
        ((75,), "fp16", True),
        ((89,), "fp16", True),
        ((120,), "bf16", True),
        ((75, 80, 86, 89, 120, 121), "fp16", True),
        ((86,), "fp32", False),  # no kernel for float32 attention: it is built from products and a softmax
    ],
    ids=str,
)
def test_a_text_conditioned_unet(
    rtx: Library,
    text_unet: tuple[Path, Component],
    tmp_path: Path,
    capabilities: tuple[int, ...],
    precision: Precision,
    fused: bool,
) -> None:
    path, component = text_unet
    typed = typed_graph(path, component, precision, tmp_path / "typed.onnx")
    profiles = make_profiles(TEXT_BUCKETS[:1])
    built = build_plan(rtx, typed, component.inputs, profiles, BuildOptions(capabilities=capabilities))
    assert built.plan.startswith(HEADER)
    assert built.num_attentions == 8  # self and cross attention in four blocks
    if built.num_fused_attentions is None:
        pytest.skip("plans of this release do not show their functions")
    assert built.num_fused_attentions == (8 if fused else 0)


def test_buckets_of_batch_and_size_in_one_plan(rtx: Library, text_unet: tuple[Path, Component], tmp_path: Path) -> None:
    path, component = text_unet
    typed = typed_graph(path, component, "fp16", tmp_path / "typed.onnx")
    one = build_plan(rtx, typed, component.inputs, make_profiles(TEXT_BUCKETS[:1]), SM89)
    profiles = make_profiles(TEXT_BUCKETS)
    assert len(profiles) == 3
    built = build_plan(rtx, typed, component.inputs, profiles, SM89)
    assert len(built.plan) > len(one.plan)
    assert built.num_fused_attentions == one.num_fused_attentions


def test_every_weight_of_the_manifest_can_be_named(
    rtx: Library, text_unet: tuple[Path, Component], tmp_path: Path
) -> None:
    path, component = text_unet
    for precision in ("fp16", "fp32"):
        typed = typed_graph(path, component, precision, tmp_path / f"{precision}.onnx")
        assert refittable_weights(rtx, typed, component) == tuple(component.initializers.values())
    assert len(component.initializers) > 100


# -- what is refused ------------------------------------------------------------------------------------------------------


def test_an_unsupported_operator_is_named(rtx: Library, tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["h"]), helper.make_node("Det", ["h"], ["y"], name="the_culprit")]
    inputs = (TensorSpec(name="x", dtype="float32", shape=("B", 8, 8)),)
    error = refused(rtx, graph(tmp_path / "g.onnx", nodes, {}, inputs), inputs=inputs)
    assert error.code == "operator-unsupported"
    assert "node the_culprit (Det)" in error.message
    assert error.details["nodes"][0]["operator"] == "Det"


def test_an_operator_of_somebody_else_is_named(rtx: Library, tmp_path: Path) -> None:
    nodes = [helper.make_node("Magic", ["x"], ["y"], name="spell", domain="nobody")]
    error = refused(rtx, graph(tmp_path / "g.onnx", nodes, {}))
    assert "node spell (Magic)" in error.message
    assert error.code == "operator-unsupported"


def test_mixed_types_are_refused(rtx: Library, tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["x", "w"], ["y"], name="mixed")]
    error = refused(rtx, graph(tmp_path / "g.onnx", nodes, {"w": np.ones(8, np.float16)}))
    assert "node mixed (Add)" in error.message


@pytest.mark.parametrize("content", [b"", b"not a graph", b"\x08\x0a\x12\x07pytorch"])
def test_files_that_are_no_graph(rtx: Library, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "g.onnx"
    path.write_bytes(content)
    refused(rtx, path)


def test_a_missing_file(rtx: Library, tmp_path: Path) -> None:
    assert "cannot read nothing.onnx" in refused(rtx, tmp_path / "nothing.onnx").message


def test_missing_external_data(rtx: Library, tmp_path: Path) -> None:
    path = graph(
        tmp_path / "g.onnx", [helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": np.ones((8, 512), np.float32)}
    )
    onnx.save(onnx.load(str(path)), str(path), save_as_external_data=True, location="g.data", size_threshold=0)
    build_plan(rtx, path, X, ONE_BATCH, SM89)
    (tmp_path / "g.data").unlink()
    assert "cannot read g.onnx" in refused(rtx, path).message


def relu(tmp_path: Path) -> Path:
    return graph(tmp_path / "g.onnx", [helper.make_node("Relu", ["x"], ["y"])], {})


def test_a_gpu_that_the_library_does_not_know(rtx: Library, tmp_path: Path) -> None:
    error = refused(rtx, relu(tmp_path), options=BuildOptions(capabilities=(90,)))
    assert error.code == "target-unsupported"
    assert "does not know sm90" in error.message


def test_shapes_that_the_graph_does_not_have(rtx: Library, tmp_path: Path) -> None:
    wrong = (TensorSpec(name="x", dtype="float32", shape=("B", 9)),)
    assert "cannot compile g.onnx" in refused(rtx, relu(tmp_path), inputs=wrong).message


def test_an_input_that_the_graph_does_not_have(rtx: Library, tmp_path: Path) -> None:
    wrong = (TensorSpec(name="z", dtype="float32", shape=("B", 8)),)
    assert "cannot compile g.onnx" in refused(rtx, relu(tmp_path), inputs=wrong).message


def test_bfloat16_for_a_gpu_without_it(rtx: Library, tmp_path: Path) -> None:
    """The backend refuses this before; TensorRT's own words must still lead to the way out."""
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.BFLOAT16),
        helper.make_node("Mul", ["h", "h"], ["hh"]),
        helper.make_node("Cast", ["hh"], ["y"], to=TensorProto.FLOAT),
    ]
    error = refused(rtx, graph(tmp_path / "g.onnx", nodes, {}), options=BuildOptions(capabilities=(75,)))
    assert "--precision fp16" in error.hint


def test_a_weight_that_nobody_has_is_not_refitted(rtx: Library, tmp_path: Path) -> None:
    error = refused(rtx, relu(tmp_path), options=BuildOptions(capabilities=(89,), refittable=("w",)))
    assert error.code == "refit-unsupported"
    assert "no weight w" in error.message


def test_attention_without_a_kernel_is_taken_apart(rtx: Library, tmp_path: Path) -> None:
    """ONNX's own Attention, head size 512: no kernel on any GPU, and an error unless it may be decomposed."""
    inputs = tuple(TensorSpec(name=name, dtype="float16", shape=("B", 2, "S", 512)) for name in "qkv")
    path = graph(tmp_path / "g.onnx", [helper.make_node("Attention", ["q", "k", "v"], ["y"])], {}, inputs)
    profile = Profile(low={"B": 1, "S": 16}, best={"B": 1, "S": 64}, high={"B": 4, "S": 256})
    built = build_plan(rtx, path, inputs, [profile], SM89)
    assert built.num_attentions == 1
    assert built.num_fused_attentions in (0, None)


@pytest.mark.parametrize(
    "edit", [lambda parameters: parameters.pop("conv.weight"), lambda parameters: parameters.clear()]
)
def test_refitting_needs_every_weight(edit: Callable[[dict[str, Any]], Any]) -> None:
    component = Component(
        file="g.onnx", inputs=X, outputs=X, opset=21, initializers={"conv.weight": "w", "conv.bias": "b"}
    )
    parameters = {"conv.weight": np.ones(3, np.float32), "conv.bias": np.zeros(3, np.float32), "more": np.ones(1)}
    assert set(named_weights(component, parameters)) == {"w", "b"}
    edit(parameters)
    with pytest.raises(UsageError) as caught:
        named_weights(component, parameters)
    assert "conv.weight" in caught.value.details["missing"]
