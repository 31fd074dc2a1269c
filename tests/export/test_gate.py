"""The gate lets the student pass and nothing else; every failure says what and how far."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from handmade import GuidanceMode, make_model, make_spec
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from distill_rt.backends.base import allocate, network_batch
from distill_rt.backends.registry import BACKENDS, ON_REQUEST, Target, backend_for
from distill_rt.core.artifacts import GateReport, Precision
from distill_rt.core.errors import GateError
from distill_rt.export.gate import COMPONENT_BARS, TRAJECTORY_BARS, evaluate_rows, run_gate
from distill_rt.export.golden import make_golden

Array = NDArray[Any]
Corrupt = Callable[[dict[str, Array], Array], Array]


class FakeProgram:
    """The reference evaluator with static shapes, and a fault of the test's choice: ``corrupt(inputs, output)``."""

    def __init__(self, evaluator: ReferenceEvaluator, mode: GuidanceMode, num_images: int, corrupt: Corrupt) -> None:
        spec = make_spec(mode)
        batch = network_batch(spec, num_images)
        self._evaluator, self._corrupt = evaluator, corrupt
        self.inputs: Mapping[str, Array] = allocate(spec.network_inputs(), batch)
        self.outputs: Mapping[str, Array] = allocate(spec.network_outputs(), batch)

    def run(self) -> None:
        inputs = dict(self.inputs)
        self.outputs["prediction"][:] = self._corrupt(inputs, self._evaluator.run(None, inputs)[0])


def healthy(inputs: dict[str, Array], output: Array) -> Array:
    return output


def gate(
    corrupt: Corrupt = healthy,
    mode: GuidanceMode = "embedded",
    precision: Precision = "fp32",
    batches: tuple[int, ...] = (1, 3),
) -> GateReport:
    spec = make_spec(mode)
    evaluator = ReferenceEvaluator(make_model(spec))
    golden = make_golden(spec, lambda name, inputs: evaluator.run(None, dict(inputs))[0])
    return run_gate(
        spec,
        golden,
        lambda name, num_images: FakeProgram(evaluator, mode, num_images, corrupt),
        precision=precision,
        batches=batches,
    )


def failed(corrupt: Corrupt, **kwargs: Any) -> GateError:
    with pytest.raises(GateError) as caught:
        gate(corrupt, **kwargs)
    assert caught.value.exit_code == 6
    assert "\n" not in caught.value.message
    return caught.value


@pytest.mark.parametrize("mode", ["embedded", "cfg", "none"])
def test_the_student_passes(mode: GuidanceMode) -> None:
    report = gate(mode=mode)
    assert report.component_bar == COMPONENT_BARS["fp32"]
    assert report.trajectory_bar == TRAJECTORY_BARS["fp32"]
    assert set(report.components) == {"network0"}
    assert "steps=4,guidance=1" in report.trajectories
    figures = [*report.components.values(), *report.trajectories.values()]
    assert max(figure.relative_l2 for figure in figures) < 1e-6


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda inputs, output: -output,
        lambda inputs, output: output * np.float32(1.001),
        lambda inputs, output: np.roll(output, 1, axis=-1),
        lambda inputs, output: np.zeros_like(output),
        lambda inputs, output: np.where(inputs["time"][:, None, None, None] > 900, 0, output),
        lambda inputs, output: np.where(inputs["label"][:, None, None, None] == 2, 0, output),
        lambda inputs, output: np.where(inputs["guidance"][:, None, None, None] > 3, 0, output),
    ],
    ids=["sign", "scale", "shifted", "zero", "one time", "one label", "one guidance scale"],
)
def test_a_wrong_component_fails(corrupt: Corrupt) -> None:
    error = failed(corrupt)
    assert error.code == "gate-failed"
    assert "component network0 at batch 3 is too far from the student: relative L2" in error.message
    assert error.details["relative_l2"] > COMPONENT_BARS["fp32"].relative_l2


def test_a_fault_of_one_batch_is_found() -> None:
    error = failed(lambda inputs, output: output if len(output) == 3 else output * np.float32(1.01))
    assert "component network0 at batch 1" in error.message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_fail(value: float) -> None:
    def corrupt(inputs: dict[str, Array], output: Array) -> Array:
        output = output.copy()
        output[0, 0, 0, 0] = value
        return output

    error = failed(corrupt)
    assert error.code == "gate-not-finite"
    assert "values are NaN or infinite" in error.message


def test_a_trajectory_alone_can_fail() -> None:
    """An engine that remembers: right for golden rows, wrong once the trajectories begin."""
    calls = 0

    def corrupt(inputs: dict[str, Array], output: Array) -> Array:
        nonlocal calls
        calls += 1
        return output if calls <= 16 else output * np.float32(1.1)

    error = failed(corrupt, batches=(1,))
    assert "trajectory steps=1,guidance=1 is too far" in error.message


def test_bars_widen_with_the_precision() -> None:
    def rounded(inputs: dict[str, Array], output: Array) -> Array:  # to the 8 bits of bfloat16
        return (output.view(np.uint32) + np.uint32(0x8000) & np.uint32(0xFFFF0000)).view(np.float32)

    assert gate(rounded, precision="bf16").components["network0"].relative_l2 > 1e-4
    assert failed(rounded, precision="fp32").code == "gate-failed"


def test_there_are_bars_for_what_backends_offer() -> None:
    targets = [*BACKENDS, *ON_REQUEST, "tensorrt:sm90", "tensorrt-rtx:sm89"]
    offered = {precision for name in targets for precision in backend_for(Target.parse(name)).precisions}
    assert set(COMPONENT_BARS) == set(TRAJECTORY_BARS) == offered
    for bars in (COMPONENT_BARS, TRAJECTORY_BARS):
        assert bars["fp32"].relative_l2 < bars["bf16"].relative_l2


@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 7])
def test_any_number_of_rows_through_a_fixed_batch(num_rows: int) -> None:
    spec = make_spec()
    evaluator = ReferenceEvaluator(make_model(spec))
    rng = np.random.default_rng(0)
    inputs = {
        "sample": rng.standard_normal((num_rows, 1, 4, 4)).astype(np.float32),
        "time": rng.uniform(0, 999, num_rows).astype(np.float32),
        "label": rng.integers(0, 4, num_rows),
        "guidance": rng.uniform(1, 4, num_rows).astype(np.float32),
    }
    got = evaluate_rows(FakeProgram(evaluator, "embedded", 3, healthy), inputs)
    np.testing.assert_allclose(got, evaluator.run(None, inputs)[0], rtol=1e-5, atol=1e-6)
