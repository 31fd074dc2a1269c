"""Every operator of the tables against ONNX Runtime, and every attribute that is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from distill_rt.backends.inductor.graph.from_onnx import from_onnx
from distill_rt.backends.inductor.graph.module import FOLDED_ONLY, OPERATORS
from distill_rt.backends.inductor.graph.patterns import ATTENTION, LINEAR
from distill_rt.core.artifacts import Component
from distill_rt.core.errors import TargetError
from distill_rt.core.spec import TensorSpec

Array = NDArray[Any]

RNG = np.random.default_rng(0)
X = RNG.standard_normal((2, 3, 4, 6)).astype(np.float32)
POSITIVE = np.abs(X) + np.float32(0.5)
ROWS = RNG.standard_normal((5, 6)).astype(np.float32)
WHOLE = RNG.integers(-9, 9, (2, 6))
TRUTH = X > 0
HALF = np.float32(0.5)


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One node: `inputs` depend on a request, `known` follow them and are initializers; None leaves an input out."""

    operator: str
    inputs: Sequence[Array] = (X,)
    known: Sequence[Array | None] = ()
    attributes: Mapping[str, Any] = field(default_factory=dict)
    num_outputs: int = 1

    def __str__(self) -> str:
        return "-".join([self.operator, *(f"{key}={value}" for key, value in self.attributes.items())])


def case(
    operator: str, *inputs: Array, known: Sequence[Array | None] = (), outputs: int = 1, **attributes: Any
) -> Case:
    return Case(operator=operator, inputs=inputs or (X,), known=known, attributes=attributes, num_outputs=outputs)


def weights(*shape: int) -> Array:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


UNARY = [
    "Abs",
    "Ceil",
    "Cos",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Neg",
    "Reciprocal",
    "Relu",
    "Round",
    "Sigmoid",
    "Sign",
    "Sin",
    "Softplus",
    "Tanh",
]
CASES = [
    *(case(name, X + HALF) for name in UNARY),
    case("Round", np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)),
    case("Log", POSITIVE),
    case("Sqrt", POSITIVE),
    case("Not", TRUTH),
    case("LeakyRelu", alpha=0.3),
    case("Elu", alpha=0.5),
    case("HardSigmoid", alpha=0.4, beta=0.1),
    *(case(name, X, POSITIVE[:1, :, :1]) for name in ("Add", "Sub", "Mul", "Div", "Max", "Min")),
    *(case(name, X, known=[np.array(0.25, np.float32)]) for name in ("Add", "Sub", "Mul", "Div")),
    case("Mul", ROWS[0], known=[np.full((1, 1), 2.0, np.float32)]),  # a scalar that adds a dimension
    case("Sum", X, POSITIVE, X),
    case("Div", WHOLE, known=[ints(4)]),
    case("Mod", WHOLE, known=[ints(4)]),
    case("Mod", X, POSITIVE, fmod=1),
    case("Pow", POSITIVE, X),
    case("Pow", X, known=[np.array(2.0, np.float32)]),
    *(case(name, WHOLE, WHOLE[:1]) for name in ("Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual")),
    case("And", TRUTH, TRUTH[:1]),
    case("Or", TRUTH, TRUTH[:1]),
    case("Where", TRUTH, X, POSITIVE),
    case("Where", TRUTH, known=[np.array(0.0, np.float32), np.array(-3.0, np.float32)]),
    case("Cast", to=TensorProto.INT64),
    case("Cast", POSITIVE * 50, to=TensorProto.UINT8),
    case("Cast", WHOLE, to=1),
    case("Clip", known=[np.array(-0.5, np.float32), np.array(0.5, np.float32)]),
    case("Clip", known=[None, np.array(0.5, np.float32)]),
    case("Gelu"),
    case("Gelu", approximate="tanh"),
    case("Concat", X, POSITIVE, axis=-2),
    case("Concat", X, known=[X], axis=1),
    case("Expand", X[:, :1], known=[ints(3, 1, 1)]),
    case("Flatten"),
    case("Flatten", axis=3),
    case("Flatten", axis=0),
    case("Gather", known=[ints(2, -1, 0)], axis=1),
    case("Gather", known=[np.array(-1)], axis=3),
    case("GatherElements", known=[np.argsort(X, axis=3) - 6], axis=3),
    case("Pad", known=[ints(0, 1, 0, 2, 0, 0, 3, 0)]),
    case("Pad", known=[ints(1, 2), np.array(2.0, np.float32), ints(-1)]),
    case("Pad", known=[ints(0, 0, 1, 2, 0, 0, 3, 1)], mode="reflect"),
    case("Pad", known=[ints(0, 0, 0, 2, 0, 0, 0, 1)], mode="edge"),
    case("Reshape", known=[ints(0, -1, 2)]),
    case("Reshape", known=[ints(6, -1)], allowzero=1),
    case("Slice", known=[ints(1, -3), ints(2**63 - 1, -1), ints(1, 3)]),
    case("Slice", known=[ints(1), ints(2)]),
    case("Slice", known=[ints(-1, 4), ints(-(2**63) + 1, 0), ints(1, 3), ints(-1, -2)]),
    case("Slice", known=[ints(0), ints(6), ints(3), ints(4)]),
    case("Split", known=[ints(1, 5)], axis=3, outputs=2),
    case("Split", ROWS[:, :5], axis=-1, num_outputs=3, outputs=3),
    case("Squeeze", X[:, :1, :1]),
    case("Squeeze", X[:, :1, :1], known=[ints(-3)]),
    case("Unsqueeze", known=[ints(0, -1)]),
    case("Unsqueeze", known=[ints(-1, 1)]),
    case("Tile", known=[ints(1, 2, 1, 3)]),
    case("Transpose"),
    case("Transpose", perm=[0, 2, 3, 1]),
    case("Trilu"),
    case("Trilu", known=[np.array(1)], upper=0),
    case("DepthToSpace", RNG.standard_normal((2, 8, 3, 2)).astype(np.float32), blocksize=2),
    case("DepthToSpace", RNG.standard_normal((2, 8, 3, 2)).astype(np.float32), blocksize=2, mode="CRD"),
    *(
        case(name, known=[ints(1, -1)], keepdims=0)
        for name in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceL2")
    ),
    case("ReduceMean"),
    case("ReduceSum", noop_with_empty_axes=1),
    case("ArgMax", axis=2),
    case("ArgMin", keepdims=0),
    case("Softmax"),
    case("Softmax", axis=1),
    case("LogSoftmax"),
    case("TopK", known=[ints(3)], outputs=2),
    case("CumSum", known=[np.array(2)]),
    case("TopK", known=[ints(2)], axis=1, largest=0, outputs=2),
    case("GlobalAveragePool"),
    case("AveragePool", kernel_shape=[2, 3], strides=[2, 3]),
    case("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    case("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1], count_include_pad=1),
    case("Conv", known=[weights(5, 3, 3, 3), weights(5)], pads=[1, 1, 1, 1]),
    case("Conv", known=[weights(4, 3, 1, 1)], strides=[2, 1]),
    case("Conv", known=[weights(3, 1, 2, 2)], group=3, dilations=[2, 1]),
    case("Conv", known=[weights(5, 3, 3, 3)], pads=[0, 1, 2, 0], strides=[2, 2]),
    case(
        "ConvTranspose",
        known=[weights(3, 5, 3, 3), weights(5)],
        strides=[2, 2],
        pads=[1, 1, 1, 1],
        output_padding=[1, 1],
    ),
    case("Gemm", ROWS, known=[weights(4, 6), weights(4)], transB=1),
    case("Gemm", ROWS, known=[weights(6, 4), weights(1, 4)], alpha=0.5, beta=2.0),
    case("Gemm", ROWS, known=[weights(5, 4)], transA=1),
    case("MatMul", X, known=[weights(6, 2)]),
    case("MatMul", X, X.transpose(0, 1, 3, 2)),
    case("Einsum", X, POSITIVE, equation="bchw,bdhw->bcd"),
    case("GroupNormalization", weights(2, 6, 4, 4), known=[weights(6), weights(6)], num_groups=3, epsilon=1e-3),
    case("InstanceNormalization", known=[weights(3), weights(3)], epsilon=1e-3),
    case("LayerNormalization", known=[weights(6), weights(6)]),
    case("LayerNormalization", known=[weights(4, 6)], axis=2, epsilon=1e-3),
    case("LayerNormalization", known=[weights(1)]),
    case(
        "Resize",
        known=[None, np.array([1, 1, 2, 3], np.float32)],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    case(
        "Resize",
        known=[None, None, ints(2, 3, 7, 9)],
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    case(
        "Resize",
        known=[None, None, ints(2, 3, 8, 3)],
        mode="linear",
        coordinate_transformation_mode="pytorch_half_pixel",
    ),
]
REFUSED = [
    case("ArgMax", select_last_index=1),
    case("CumSum", known=[np.array(1)], reverse=1),
    case("MaxPool", kernel_shape=[2, 2], ceil_mode=1),
    case("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    case("Conv", known=[weights(5, 3, 3, 3)], auto_pad="SAME_UPPER"),
    case("ConvTranspose", known=[weights(3, 5, 3, 3)], pads=[0, 0, 1, 1]),
    case("Pad", known=[ints(1, 1, 0, 0, 0, 0, 0, 0)], mode="wrap"),
    case("LayerNormalization", known=[weights(6)], outputs=2),
    case("Resize", known=[None, None, ints(2, 3, 8, 8)], mode="cubic"),
    case(
        "Resize",
        known=[None, np.array([1, 1, 1.4, 1], np.float32)],
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    case(
        "Resize",
        known=[None, None, ints(4, 3, 8, 8)],
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    case("Reshape", X, WHOLE),
    case("Cast", to=TensorProto.STRING),
    case("NonZero"),
]


def write(path: Path, item: Case) -> tuple[Component, dict[str, Array]]:
    """A graph with the one node. Truth values cannot be inputs of a component; they are made of numbers above 0."""
    feeds: dict[str, Array] = {}
    nodes, names, initializers = [], [], []
    for index, array in enumerate(item.inputs):
        name = f"x{index}"
        feeds[name] = array.astype(np.float32) if array.dtype == bool else array
        if array.dtype == bool:
            nodes.append(helper.make_node("Greater", [name, "nothing"], [f"{name}.true"]))
            initializers.append(numpy_helper.from_array(np.zeros(1, np.float32), "nothing"))
            name = f"{name}.true"
        names.append(name)
    for index, known in enumerate(item.known):
        names.append("" if known is None else f"known{index}")
        if known is not None:
            initializers.append(numpy_helper.from_array(known, f"known{index}"))
    outputs = [f"y{index}" for index in range(item.num_outputs)]
    nodes.append(helper.make_node(item.operator, names, outputs, name="the_node", **item.attributes))
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        list({i.name: i for i in initializers}.values()),
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))
    component = Component(
        file=path.name,
        inputs=tuple(TensorSpec(name=n, dtype=a.dtype.name, shape=a.shape) for n, a in feeds.items()),  # type: ignore[arg-type]
        outputs=tuple(TensorSpec(name=name, dtype="float32", shape=()) for name in outputs),
        opset=21,
        # Large ones are weights, and so tensors; the rest is known while translating.
        initializers={
            i.name: i.name
            for i in initializers
            if np.prod(i.dims) > 2 and i.data_type == TensorProto.FLOAT and item.operator != "Resize"
        },
    )
    return component, feeds


def translated(path: Path, component: Component, feeds: Mapping[str, Array]) -> list[Array]:
    module, _ = from_onnx(path, component, 1, torch.device("cpu"))
    with torch.no_grad():
        return [item.numpy() for item in module(*(torch.from_numpy(array) for array in feeds.values()))]


@pytest.mark.parametrize("item", CASES, ids=str)
def test_it_is_what_onnxruntime_computes(item: Case, tmp_path: Path) -> None:
    component, feeds = write(tmp_path / "one.onnx", item)
    session = onnxruntime.InferenceSession(str(tmp_path / "one.onnx"), providers=["CPUExecutionProvider"])
    wanted = session.run(None, dict(feeds))
    for got, want in zip(translated(tmp_path / "one.onnx", component, feeds), wanted, strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


def test_every_operator_has_a_case() -> None:
    # The two patterns have tests of their own, FOLDED_ONLY are ONNX's reference.
    assert {item.operator for item in CASES} == set(OPERATORS) - {ATTENTION, LINEAR}
    assert not FOLDED_ONLY & set(OPERATORS)


@pytest.mark.parametrize("item", REFUSED, ids=str)
def test_what_is_not_supported_names_operator_and_node(item: Case, tmp_path: Path) -> None:
    component, feeds = write(tmp_path / "one.onnx", item)
    with pytest.raises(TargetError, match=item.operator) as caught:
        translated(tmp_path / "one.onnx", component, feeds)
    assert caught.value.code == "operator-unsupported"
    assert caught.value.details == {"operator": item.operator, "node": "the_node"}
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("opset", "domain"), [(23, ""), (21, "com.microsoft")])
def test_other_operator_sets_are_refused(opset: int, domain: str, tmp_path: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], domain=domain)],
        "one",
        [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info("y", 1, [1])],
    )
    sets = [helper.make_opsetid("", opset), *([helper.make_opsetid(domain, 1)] if domain else [])]
    onnx.save(helper.make_model(graph, opset_imports=sets), str(tmp_path / "one.onnx"))
    one = TensorSpec(name="x", dtype="float32", shape=(1,))
    component = Component(file="", inputs=(one,), outputs=(one,), opset=opset, initializers={})
    with pytest.raises(TargetError, match=domain or "opset 23"):
        from_onnx(tmp_path / "one.onnx", component, 1, torch.device("cpu"))
