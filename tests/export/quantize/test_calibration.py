"""What the scales are measured on: rows of the student's own trajectories, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import GuidanceMode, make_model, make_spec, write_bundle
from onnx.reference import ReferenceEvaluator

from distill_rt.core.errors import ArtifactError, TargetError
from distill_rt.core.noise import INITIAL_STREAM, unit_noise
from distill_rt.export.bundle import open_bundle
from distill_rt.export.golden import FIRST_SEED as GOLDEN_SEED
from distill_rt.export.golden import load_golden
from distill_rt.export.quantize import calibration
from distill_rt.export.quantize.calibration import FIRST_SEED, NUM_ROWS, calibration_digest, calibration_inputs


@pytest.mark.parametrize("guidance", ["none", "embedded", "cfg"])
def test_rows_of_every_kind(tmp_path: Path, guidance: GuidanceMode) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "b", guidance))
    inputs = calibration_inputs(bundle)["network0"]
    spec = bundle.body.spec
    assert set(inputs) == {tensor.name for tensor in spec.network_inputs()}
    for tensor in spec.network_inputs():
        assert inputs[tensor.name].dtype == np.dtype(tensor.dtype)
        assert inputs[tensor.name].shape == tensor.concrete(NUM_ROWS)
    times = {row.time for table in spec.plans.values() for row in table.rows}
    assert set(inputs["time"]) == {np.float32(time) for time in times}
    labels = set(inputs["label"])
    assert labels == ({0, 1, 2, 3} if guidance == "cfg" else {0, 1, 2}), "the null label only under cfg"
    if guidance == "embedded":
        assert set(inputs["guidance"]) == {1.0, 2.0, 4.0}


def test_states_are_those_of_their_time(tmp_path: Path) -> None:
    """First rows are the unit noise of their seeds; every later state follows from the student, computed here by another
    evaluator."""
    bundle = open_bundle(write_bundle(tmp_path / "b", "none"))
    spec = bundle.body.spec
    inputs = calibration_inputs(bundle)["network0"]
    noise = unit_noise([FIRST_SEED + i for i in range(64)], spec.sample_shape, INITIAL_STREAM)
    first = inputs["sample"][inputs["time"] == inputs["time"].max()]
    assert len(first) > 8
    for row in first:
        assert (np.abs(noise - row).reshape(64, -1).max(axis=1) < 1e-6).any()
    later = inputs["sample"][inputs["time"] < inputs["time"].max()]
    evaluator = ReferenceEvaluator(make_model(make_spec("none")))
    table = spec.plans[4]
    for row in later[:4]:
        assert (np.abs(noise - row).reshape(64, -1).max(axis=1) > 0.1).all()
    # The second state of plan 4 from the first: x_next = r*x + g*x0 + f*F, x0 = p*x + q*F.
    step, second = table.rows[0], np.float32(table.rows[1].time)
    F = evaluator.run(
        None,
        {
            "sample": noise * np.float32(step.c_in),
            "time": np.full(64, step.time, np.float32),
            "label": np.arange(64) % 3,
        },
    )[0]
    candidates = step.r * noise + step.g * (step.p * noise + step.q * F) + step.f * F
    for row in inputs["sample"][inputs["time"] == second]:
        assert (np.abs(candidates * table.rows[1].c_in - row).reshape(64, -1).max(axis=1) < 1e-4).any()


def test_the_gate_is_not_run_on_them(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "b"))
    golden = load_golden(bundle.directory / bundle.body.golden).components["network0"].inputs["sample"]
    mine = calibration_inputs(bundle)["network0"]["sample"]
    assert GOLDEN_SEED + 1000 < FIRST_SEED
    assert not {row.tobytes() for row in golden} & {row.tobytes() for row in mine}


def test_several_networks_get_their_own_rows(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "b", num_networks=2))
    inputs = calibration_inputs(bundle)
    assert set(inputs) == {"network0", "network1"}
    for i in range(2):
        expected = {row.time for table in bundle.body.spec.plans.values() for row in table.rows if row.net_id == i}
        assert set(inputs[f"network{i}"]["time"]) == {np.float32(time) for time in expected}


def test_the_same_rows_every_time(tmp_path: Path) -> None:
    bundle = open_bundle(write_bundle(tmp_path / "b"))
    digests = [calibration_digest(calibration_inputs(bundle)["network0"]) for _ in range(2)]
    assert digests[0] == digests[1]


def test_the_digest_sees_names_types_shapes_and_values() -> None:
    base: dict[str, Any] = {"x": np.zeros((2, 3), np.float32), "t": np.zeros(2, np.float32)}
    changes = [
        {"x": np.zeros((3, 2), np.float32)},
        {"x": np.zeros((2, 3), np.int32)},
        {"x": np.full((2, 3), 1e-7, np.float32)},
        {"t": np.ones(2, np.float32)},
    ]
    digests = {calibration_digest(base | change) for change in changes}
    renamed = calibration_digest({"y": base["x"], "t": base["t"]})
    assert len(digests | {renamed, calibration_digest(base)}) == len(changes) + 2
    assert calibration_digest(dict(reversed(base.items()))) == calibration_digest(base)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    """A bundle whose golden outputs were fine: no export writes this, a later damage to the weights does."""
    import onnx

    def overflow(model: onnx.ModelProto) -> None:
        (weight,) = (item for item in model.graph.initializer if item.name == "conv_out.weight")
        array = onnx.numpy_helper.to_array(weight) * np.float32(np.inf)
        weight.CopyFrom(onnx.numpy_helper.from_array(array, weight.name))

    bundle = open_bundle(write_bundle(tmp_path / "b", edit_model=overflow))
    with pytest.raises(ArtifactError) as caught:
        calibration_inputs(bundle)
    assert caught.value.code == "student-not-finite"


def test_without_onnxruntime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    bundle = open_bundle(write_bundle(tmp_path / "b"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(TargetError) as caught:
        calibration_inputs(bundle)
    assert "distill-rt[onnxruntime]" in caught.value.hint


def test_at_most_so_many_images(tmp_path: Path) -> None:
    spec = make_spec()
    assert 2 <= calibration._images_per_scale(spec, 3) <= 16
