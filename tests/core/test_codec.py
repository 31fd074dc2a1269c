"""Strict JSON: what goes in comes out, and anything else is refused by name."""

from __future__ import annotations

import copy
import dataclasses
import json
import math
from typing import Any, Literal

import pytest
from contracts import contract, unconditional

from distill_rt.core import codec
from distill_rt.core.artifacts import (
    BundleBody,
    Compiled,
    Component,
    Distance,
    EngineBody,
    GateReport,
    StudentBody,
)
from distill_rt.core.codec import CodecError
from distill_rt.core.process import PROCESSES
from distill_rt.core.spec import StudentSpec, TensorSpec

SPEC = contract()
DISTANCE = Distance(relative_l2=1e-6, psnr_db=120.5, cosine=1.0)
BUNDLE = BundleBody(
    spec=SPEC,
    student_digest="ab" * 32,
    mode="step",
    components={
        "network0": Component(
            file="onnx/network0.onnx",
            inputs=SPEC.network_inputs(),
            outputs=SPEC.network_outputs(),
            opset=21,
            initializers={"backbone.out.weight": "w0"},
        )
    },
    golden="golden.safetensors",
    versions={"torch": "2.13.0"},
)
ENGINE = EngineBody(
    spec=SPEC,
    bundle_digest="cd" * 32,
    target="openvino:cpu",
    precision="bf16",
    fingerprint="ef" * 32,
    fingerprint_parts={"cpu": "x", "flags": ["avx2"], "n": 3},
    batches=(1, 4),
    components={"network0": (Compiled(batch=1, files=("a.xml", "a.bin")), Compiled(batch=4, files=()))},
    gate=GateReport(
        component_bar=DISTANCE,
        trajectory_bar=DISTANCE,
        components={"network0": DISTANCE},
        trajectories={"steps=4,guidance=2": DISTANCE},
    ),
    build_seconds=1.25,
    options={"threads": 2},
)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(codec.to_json(value), allow_nan=False))


@pytest.mark.parametrize(
    "value",
    [
        SPEC,
        unconditional(),
        contract(process=PROCESSES["edm"]()),
        StudentBody(spec=SPEC, weights=("network0.safetensors",)),
        BUNDLE,
        ENGINE,
    ],
    ids=lambda value: type(value).__name__,
)
def test_round_trip(value):
    assert codec.from_json(type(value), through_json(value)) == value


def test_defaults_may_be_left_out_and_are_filled_in():
    data = through_json(SPEC)
    for name in ("condition", "guidance", "provenance"):
        del data[name]
    spec = codec.from_json(StudentSpec, data)
    assert spec.condition.kind == "none"
    assert spec.guidance.mode == "none"
    assert spec.provenance == {}


def put(data: Any, path: str, value: Any) -> Any:
    """A deep copy with one value replaced; `path` is dotted, integers index lists."""
    data = copy.deepcopy(data)
    *parents, last = [int(key) if key.isdecimal() and not key.startswith("#") else key for key in path.split(".")]
    inner = data
    for key in parents:
        inner = inner[str(key)] if isinstance(inner, dict) else inner[key]
    inner[str(last) if isinstance(inner, dict) else last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "where", "what"),
    [
        ("name", 3, "StudentSpec.name", "a string"),
        ("name", None, "StudentSpec.name", "a string"),
        ("default_steps", True, "StudentSpec.default_steps", "an integer"),
        ("default_steps", 4.0, "StudentSpec.default_steps", "an integer"),
        ("default_steps", "4", "StudentSpec.default_steps", "an integer"),
        ("default_steps", 3, "StudentSpec", "not among the plans"),
        ("sample_shape", [1, 8], "StudentSpec.sample_shape", "3 items"),
        ("sample_shape", [1, 8, True], "StudentSpec.sample_shape[2]", "an integer"),
        ("sample_shape", [1, 8, 0], "StudentSpec", "positive"),
        ("sample_shape", {"0": 1}, "StudentSpec.sample_shape", "a list"),
        ("guidance", [], "StudentSpec.guidance", "an object"),
        ("guidance", None, "StudentSpec.guidance", "an object"),
        ("guidance.mode", "CFG", "StudentSpec.guidance.mode", "one of none, embedded, cfg"),
        ("guidance.mode", ["cfg"], "StudentSpec.guidance.mode", "one of"),
        ("guidance.max", "4", "StudentSpec.guidance.max", "a number"),
        ("guidance.max", True, "StudentSpec.guidance.max", "a number"),
        ("guidance.max", math.nan, "StudentSpec.guidance.max", "finite"),
        ("guidance.max", math.inf, "StudentSpec.guidance.max", "finite"),
        ("guidance.max", 10**400, "StudentSpec.guidance.max", "finite"),
        ("guidance.default", 9.0, "StudentSpec.guidance", "min <= default <= max"),
        ("guidance.extra", 1, "StudentSpec.guidance", "unknown keys: 'extra'"),
        ("condition.null_label", "10", "StudentSpec.condition.null_label", "an integer"),
        ("condition.null_label", -1, "StudentSpec.condition", "null label"),
        ("condition.num_classes", -1, "StudentSpec.condition", "classes"),
        ("plans.four", {}, "StudentSpec.plans", "keys must be integers, got 'four'"),
        ("plans", {}, "StudentSpec", "at least one plan"),
        ("plans", [], "StudentSpec.plans", "an object"),
        ("plans.4.rows.0.time", "x", "StudentSpec.plans.4", "time must be a number"),
        ("plans.4.rows.0.time", 10**400, "StudentSpec.plans.4", "too large"),
        ("plans.4.rows.0.unknown", 1, "StudentSpec.plans.4", "unknown row keys"),
        ("plans.4.rows", [], "StudentSpec.plans.4", "at least one row"),
        ("plans.4.rows", 3, "StudentSpec.plans.4", "not a step table"),
        ("plans.4", [], "StudentSpec.plans.4", "an object"),
        ("process.kind", "vp-sine", "StudentSpec.process", "vp-sine"),
        ("process.kind", ["edm"], "StudentSpec.process", ""),
        ("process", 3, "StudentSpec.process", "an object"),
        ("parameterization.prediction", "w", "StudentSpec.parameterization", "w"),
        ("networks.0.kind", 3, "StudentSpec.networks[0].kind", "a string"),
        ("networks.0.config", None, "StudentSpec.networks[0].config", "an object"),
        ("networks", [], "StudentSpec", "names network 0"),
        ("provenance", [], "StudentSpec.provenance", "an object"),
    ],
)
def test_wrong_values_are_refused_by_their_path(path, value, where, what):
    with pytest.raises(CodecError) as caught:
        codec.from_json(StudentSpec, put(through_json(SPEC), path, value))
    message = str(caught.value)
    assert message.startswith(where), message
    assert what in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize("key", ["04", "-4", "+4", " 4", "٤", "4.0", "", "9" * 5000])
def test_only_plain_integers_are_keys_of_plans(key):
    data = through_json(SPEC)
    data["plans"] = {**data["plans"], key: data["plans"]["4"]}
    with pytest.raises(CodecError, match=r"^StudentSpec\.plans: keys must be integers"):
        codec.from_json(StudentSpec, data)


@pytest.mark.parametrize(
    "body", [StudentBody(spec=SPEC, weights=("w",)), BUNDLE, ENGINE], ids=lambda b: type(b).__name__
)
def test_every_key_is_known_and_needed(body):
    data = through_json(body)
    with pytest.raises(CodecError, match="has unknown keys: 'comment'"):
        codec.from_json(type(body), {**data, "comment": "hi"})
    for field in dataclasses.fields(body):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            with pytest.raises(CodecError, match=f"lacks {field.name}"):
                codec.from_json(type(body), {key: value for key, value in data.items() if key != field.name})


@pytest.mark.parametrize(
    ("path", "value", "where"),
    [
        ("precision", "fp7", "EngineBody.precision"),
        ("batches.0", True, "EngineBody.batches[0]"),
        ("components.network0.0.batch", "1", "EngineBody.components.network0[0].batch"),
        ("components.network0.0.files", "a.xml", "EngineBody.components.network0[0].files"),
        ("components.network0.0.files.1", None, "EngineBody.components.network0[0].files[1]"),
        ("gate.component_bar.psnr_db", math.inf, "EngineBody.gate.component_bar.psnr_db"),
        ("gate.trajectories.steps=4,guidance=2.cosine", None, "EngineBody.gate.trajectories.steps=4,guidance=2.cosine"),
        ("spec.guidance.min", False, "EngineBody.spec.guidance.min"),
    ],
)
def test_the_path_leads_through_lists_and_objects(path, value, where):
    with pytest.raises(CodecError) as caught:
        codec.from_json(EngineBody, put(through_json(ENGINE), path, value))
    assert str(caught.value).startswith(where)


def test_odd_keys_stay_on_one_line():
    data = through_json(ENGINE)
    data["components"] = {"a\nb": [{"batch": "x", "files": []}]}
    with pytest.raises(CodecError) as caught:
        codec.from_json(EngineBody, data)
    assert "\n" not in str(caught.value)
    with pytest.raises(CodecError) as caught:
        codec.from_json(EngineBody, {**data, "a\nb": 1})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        {"name": "x", "dtype": "float32"},
        {"name": "x", "dtype": "float32", "shape": ["B"], "layout": "NCHW"},
        {"name": "x", "dtype": "float33", "shape": ["B"]},
        {"name": "x", "dtype": None, "shape": ["B"]},
        {"name": 3, "dtype": "float32", "shape": ["B"]},
        {"name": "x", "dtype": "float32", "shape": 3},
        {"name": "x", "dtype": "float32", "shape": "B8"},
        {"name": "x", "dtype": "float32", "shape": ["B", 8.0]},
        {"name": "x", "dtype": "float32", "shape": ["B", True]},
    ],
)
def test_tensors_are_checked(data):
    body = put(through_json(BUNDLE), "components.network0.inputs.1", data)
    with pytest.raises(CodecError, match=r"^BundleBody\.components\.network0\.inputs\[1\]: "):
        codec.from_json(BundleBody, body)


def test_concrete_shapes():
    tensor = TensorSpec(name="x", dtype="float32", shape=("B", 3, 8, 8))
    assert tensor.concrete(5) == (5, 3, 8, 8)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scalars:
    i: int = 0
    f: float = 0.0
    b: bool = False
    s: str | None = None
    c: Literal["a", "b"] = "a"
    t: tuple[float, ...] = ()


@pytest.mark.parametrize(
    "data", [{}, {"i": -3}, {"f": 3}, {"b": True}, {"s": None}, {"s": "x"}, {"c": "b"}, {"t": [1, 2.5]}, {"f": -0.0}]
)
def test_scalars(data):
    decoded = codec.from_json(Scalars, data)
    assert codec.from_json(Scalars, through_json(decoded)) == decoded
    assert type(decoded.f) is float


@pytest.mark.parametrize(
    "data",
    [
        {"i": True},
        {"i": 1.0},
        {"f": True},
        {"f": "1"},
        {"f": None},
        {"b": 1},
        {"b": "true"},
        {"s": 1},
        {"c": "c"},
        {"c": True},
        {"t": ["1"]},
        {"t": 1},
        {"t": [math.nan]},
        [],
        None,
        "x",
        3,
    ],
)
def test_wrong_scalars(data):
    with pytest.raises(CodecError, match=r"^Scalars"):
        codec.from_json(Scalars, data)
