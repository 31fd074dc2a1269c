"""Golden files: what they cover, and that reading gives what was written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import GuidanceMode, make_spec
from numpy.typing import NDArray

from distill_rt.core.errors import ArtifactError
from distill_rt.export.golden import MAX_ROWS, Golden, load_golden, make_golden, save_golden

Array = NDArray[Any]


def evaluate(name: str, inputs: Mapping[str, Array]) -> Array:
    return np.tanh(inputs["sample"] + inputs["label"][:, None, None, None]).astype(np.float32)


def make(mode: GuidanceMode = "embedded", num_networks: int = 1) -> Golden:
    return make_golden(make_spec(mode, num_networks), evaluate)


@pytest.mark.parametrize(("mode", "scales"), [("embedded", [1.0, 2.0, 4.0]), ("cfg", [1.0, 2.0, 4.0]), ("none", [1.0])])
def test_every_plan_meets_every_scale(mode: GuidanceMode, scales: list[float]) -> None:
    golden = make(mode)
    assert [(run.steps, run.guidance) for run in golden.trajectories] == [(n, w) for n in (1, 4) for w in scales]
    assert all(run.images.shape == (2, 1, 4, 4) and run.images.dtype == np.float32 for run in golden.trajectories)
    assert golden.trajectories[-1].name == f"steps=4,guidance={scales[-1]:g}"


def test_rows_come_from_real_calls() -> None:
    golden = make("embedded")
    component = golden.components["network0"]
    assert component.num_rows == MAX_ROWS
    assert set(component.inputs) == {"sample", "time", "label", "guidance"}
    assert set(component.inputs["guidance"]) == {1.0, 2.0, 4.0}
    assert set(component.inputs["label"]) == {0, 1, 2}
    times = {np.float32(row.time) for table in make_spec().plans.values() for row in table.rows}
    assert set(component.inputs["time"]) == times
    np.testing.assert_array_equal(component.outputs["prediction"], evaluate("network0", component.inputs))


def test_cfg_rows_hold_both_evaluations() -> None:
    labels = make("cfg").components["network0"].inputs["label"]
    assert 3 in labels
    assert (labels < 3).any()


def test_every_network_has_rows() -> None:
    assert set(make(num_networks=2).components) == {"network0", "network1"}


@pytest.mark.parametrize("mode", ["embedded", "cfg", "none"])
def test_reading_gives_what_was_written(mode: GuidanceMode, tmp_path: Path) -> None:
    golden = make(mode, 2)
    save_golden(tmp_path / "golden.safetensors", golden)
    read = load_golden(tmp_path / "golden.safetensors")
    assert set(read.components) == set(golden.components)
    for name, component in golden.components.items():
        for ours, theirs in (
            (component.inputs, read.components[name].inputs),
            (component.outputs, read.components[name].outputs),
        ):
            assert set(ours) == set(theirs)
            assert all(np.array_equal(ours[key], theirs[key]) and ours[key].dtype == theirs[key].dtype for key in ours)
    assert len(read.trajectories) == len(golden.trajectories)
    for a, b in zip(golden.trajectories, read.trajectories, strict=True):
        assert (a.steps, a.guidance, a.seeds, a.labels) == (b.steps, b.guidance, b.seeds, b.labels)
        assert np.array_equal(a.images, b.images)


def test_the_file_is_the_same_every_time(tmp_path: Path) -> None:
    for name in "ab":
        save_golden(tmp_path / name, make())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_teacher_with_long_plans_stays_small(tmp_path: Path) -> None:
    spec = make_spec("cfg")
    one = spec.plans[4].rows
    long = dataclasses.replace(spec.plans[4], rows=one * 16)
    save_golden(
        tmp_path / "golden", make_golden(dataclasses.replace(spec, plans={4: spec.plans[4], 64: long}), evaluate)
    )
    assert (tmp_path / "golden").stat().st_size < 20_000


def test_a_student_that_overflows_is_refused() -> None:
    def overflow(name: str, inputs: Mapping[str, Array]) -> Array:
        return np.full_like(inputs["sample"], np.inf)

    with pytest.raises(ArtifactError, match="student's own images are NaN or infinite at steps=1") as caught:
        make_golden(make_spec(), overflow)
    assert caught.value.code == "student-not-finite"


@pytest.mark.parametrize("content", [b"", b"not tensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_file_that_is_none(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "golden").write_bytes(content)
    with pytest.raises(ArtifactError, match="does not hold golden outputs") as caught:
        load_golden(tmp_path / "golden")
    assert "\n" not in caught.value.message
