"""int8 goes where it pays, stays off what it would spoil, and bad calibration data are refused."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, save

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import TensorSpec
from distill_rt.export.quantize.nncf_int8 import WeightBits, quantize_for_openvino, usable_weight_bits

pytest.importorskip("nncf")
ov = pytest.importorskip("openvino")

Array = NDArray[Any]

CHANNELS = 32
INPUTS = (
    TensorSpec(name="sample", dtype="float32", shape=("B", 3, 8, 8)),
    TensorSpec(name="time", dtype="float32", shape=("B",)),
)


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convolutions 3 -> 32 -> 32 -> 3 with a time embedding added in the middle."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> Array:
        scale = 1 / np.sqrt(np.prod(shape[1:]) if len(shape) == 4 else shape[0])
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    weights = {
        "first": weight(CHANNELS, 3, 3, 3),
        "middle": weight(CHANNELS, CHANNELS, 3, 3),
        "last": weight(3, CHANNELS, 3, 3),
        "embed": weight(1, CHANNELS),
        "project": weight(CHANNELS, CHANNELS),
        "column": np.array([-1, 1], np.int64),
        "pixel": np.array([-1, CHANNELS, 1, 1], np.int64),
    }
    pads = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Reshape", ["time", "column"], ["t"]),
        helper.make_node("MatMul", ["t", "embed"], ["e"], name="time_embed"),
        helper.make_node("Sin", ["e"], ["waves"]),
        helper.make_node("MatMul", ["waves", "project"], ["vector"], name="time_project"),
        helper.make_node("Reshape", ["vector", "pixel"], ["shift"]),
        helper.make_node("Conv", ["sample", "first"], ["a"], name="conv_first", **pads),
        helper.make_node("Add", ["a", "shift"], ["b"]),
        helper.make_node("Relu", ["b"], ["c"]),
        helper.make_node("Conv", ["c", "middle"], ["d"], name="conv_middle", **pads),
        helper.make_node("Relu", ["d"], ["f"]),
        helper.make_node("Conv", ["f", "last"], ["prediction"], name="conv_last", **pads),
    ]
    model = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, list(t.shape)) for t in INPUTS],
        [helper.make_tensor_value_info("prediction", TensorProto.FLOAT, ["B", 3, 8, 8])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    path = tmp_path_factory.mktemp("int8") / "tiny.onnx"
    save(helper.make_model(model, opset_imports=[helper.make_opsetid("", 21)], ir_version=10), str(path))
    return path


def samples(num: int) -> list[dict[str, Array]]:
    rng = np.random.default_rng(1)
    return [
        {
            "sample": rng.standard_normal((1, 3, 8, 8)).astype(np.float32),
            "time": np.array([number / num], np.float32),
        }
        for number in range(num)
    ]


@pytest.fixture(scope="module")
def quantized(graph: Path) -> Path:
    return quantize_for_openvino(
        graph, INPUTS, samples(8), graph.with_name("tiny.xml"), weight_bits=usable_weight_bits()
    )


def test_only_the_middle_is_quantized(quantized: Path) -> None:
    model = ov.Core().read_model(str(quantized))
    types = collections.Counter(node.get_type_name() for node in model.get_ops())
    assert types["FakeQuantize"] == 1  # the input of one convolution; its weight is an int8 constant
    for node in model.get_ops():
        if node.get_type_name() in ("Convolution", "MatMul"):
            behind = node.input_value(0).get_node().get_type_name()
            assert (behind == "FakeQuantize") == (node.get_friendly_name() == "conv_middle"), node


@pytest.mark.parametrize(("bits", "largest"), [(8, 127), (7, 64)])
def test_weights_of_7_bits_cannot_overflow_sums_of_16(
    graph: Path, tmp_path: Path, bits: WeightBits, largest: int
) -> None:
    model = ov.Core().read_model(
        str(quantize_for_openvino(graph, INPUTS, samples(8), tmp_path / "tiny.xml", weight_bits=bits))
    )
    (weight,) = (node.data for node in model.get_ops() if node.get_element_type() == ov.Type.i8)
    assert largest - 1 <= np.abs(weight.astype(int)).max() <= largest
    assert (2 * 255 * largest < 2**15) == (bits == 7)


@pytest.mark.parametrize("batch", [1, 3])
def test_it_still_is_the_network(graph: Path, quantized: Path, batch: int) -> None:
    rng = np.random.default_rng(2)
    inputs = {
        "sample": rng.standard_normal((batch, 3, 8, 8)).astype(np.float32),
        "time": np.linspace(0, 1, batch, dtype=np.float32),
    }
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    want, got = (
        next(iter(ov.Core().compile_model(str(path), "CPU", settings)(inputs).values())) for path in (graph, quantized)
    )
    distance = float(np.linalg.norm(got - want) / np.linalg.norm(want))
    assert 0 < distance < 0.03  # 0 would mean that nothing was quantized


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda s: s.clear(), "calibration-missing"),
        (lambda s: s[1].pop("time"), "calibration-inputs"),
        (lambda s: s[1].update(extra=s[1]["time"]), "calibration-inputs"),
        (lambda s: s[1].update(sample=s[1]["sample"][0]), "calibration-shape"),
        (lambda s: s[1].update(time=s[1]["time"].astype(np.float64)), "calibration-shape"),
        (lambda s: s[1].update(time=np.array([np.nan], np.float32)), "calibration-not-finite"),
    ],
    ids=["none", "missing", "unknown", "shape", "type", "nan"],
)
def test_bad_samples_are_refused(graph: Path, tmp_path: Path, change: Any, code: str) -> None:
    given = samples(2)
    change(given)
    with pytest.raises(UsageError) as error:
        quantize_for_openvino(graph, INPUTS, given, tmp_path / "out.xml", weight_bits=8)
    assert error.value.code == code
    assert not list(tmp_path.iterdir())
