"""One network call on every engine, and loading one: ours beside what a user would write, and torch.

    pytest benchmarks/bench_engines.py --benchmark-only --benchmark-group-by=group

The network is the digits recipe's, with random weights, which cost the same. `*-default` is the library as its first tutorial
uses it: the exported graph, default settings, a dictionary per call. `program` is `Program.run`, compilation left out.
Precision matters to speed, so bfloat16 has its own names; every answer is compared with torch in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from distill_rt.backends import processor
from distill_rt.backends.base import CompileOptions, Program
from distill_rt.backends.openvino import BF16_INSTRUCTION_SETS
from distill_rt.backends.registry import Target, backend_for
from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.spec import StudentSpec
from distill_rt.export.onnx_graph import evaluate, export_component
from distill_rt.export.rewrites import rewrite_graph
from distill_rt.models import build_network
from distill_rt.training.recipes import RECIPES

Array = NDArray[Any]
Call = Callable[[], Array]

BATCHES = (1, 2, 16)
TOLERANCE: Mapping[Precision, float] = {"fp32": 1e-5, "bf16": 3e-2}
NUM_THREADS = processor.available_cores()
HAS_BF16 = bool(BF16_INSTRUCTION_SETS & processor.instruction_sets())


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """The network everywhere it can run."""

    spec: StudentSpec
    network: torch.nn.Module
    component: Component
    directory: Path

    @property
    def graph(self) -> Path:
        return self.directory / self.component.file

    def inputs(self, batch: int) -> dict[str, Array]:
        rng = np.random.default_rng(batch)
        return {
            "sample": rng.standard_normal((batch, *self.spec.sample_shape)).astype(np.float32),
            "time": np.full(batch, 500.0, np.float32),
            "label": rng.integers(0, 10, batch),
        }


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Case:
    spec = RECIPES["digits-teacher"]().spec
    torch.manual_seed(0)
    network = build_network(spec.networks[0]).eval()
    directory = tmp_path_factory.mktemp("engines")
    return Case(
        spec=spec,
        network=network,
        component=export_component(network, *spec.components()["network0"], directory, "network0.onnx"),
        directory=directory,
    )


def compiled(
    case: Case, target: str, precision: Precision, batch: int
) -> tuple[Callable[[], Program], tuple[Path, ...]]:
    """How to load the component compiled for `batch`, and the files that takes."""
    backend = backend_for(Target.parse(target))
    options = CompileOptions(precision=precision, num_threads=NUM_THREADS)
    stem = f"{backend.name}.{precision}.b{batch}"
    graph = rewrite_graph(case.graph, backend.rewrites, case.directory / f"{stem}.rewritten.onnx")
    files = backend.compile(graph, case.component, [batch], case.directory, stem, options)

    def load() -> Program:
        return backend.load(case.directory, files, case.component.inputs, case.component.outputs, batch, options)

    return load, tuple(case.directory / file for file in files)


def program_call(target: str, precision: Precision) -> Callable[[Case, int], Call]:
    def make(case: Case, batch: int) -> Call:
        program = compiled(case, target, precision, batch)[0]()
        for name, value in case.inputs(batch).items():
            program.inputs[name][:] = value
        output = program.outputs["prediction"]

        def call() -> Array:
            program.run()
            return output

        return call

    return make


def torch_eager(case: Case, batch: int) -> Call:
    torch.set_num_threads(NUM_THREADS)
    arguments = [torch.from_numpy(value) for value in case.inputs(batch).values()]

    def call() -> Array:
        with torch.inference_mode():
            output: Array = case.network(*arguments).numpy()
        return output

    return call


def onnxruntime_default(case: Case, batch: int) -> Call:
    import onnxruntime as ort

    session = ort.InferenceSession(str(case.graph), providers=["CPUExecutionProvider"])
    inputs = case.inputs(batch)
    return lambda: session.run(None, inputs)[0]


def openvino_default(case: Case, batch: int) -> Call:
    import openvino as ov

    # In float32, to compare like with like: the default is bfloat16 wherever the processor has it.
    model = ov.Core().compile_model(str(case.graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    inputs = case.inputs(batch)
    return lambda: model(inputs)[0]


CALLS: Mapping[str, tuple[Callable[[Case, int], Call], Precision]] = {
    "torch-eager": (torch_eager, "fp32"),
    "onnxruntime-default": (onnxruntime_default, "fp32"),
    "onnxruntime-program": (program_call("onnxruntime:cpu", "fp32"), "fp32"),
    "openvino-default": (openvino_default, "fp32"),
    "openvino-program": (program_call("openvino:cpu", "fp32"), "fp32"),
    "openvino-program-bf16": (program_call("openvino:cpu", "bf16"), "bf16"),
}


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", CALLS)
def test_call(name: str, batch: int, case: Case, benchmark: BenchmarkFixture) -> None:
    make, precision = CALLS[name]
    if precision == "bf16" and not HAS_BF16:
        pytest.skip("this processor has no bfloat16 instructions")
    benchmark.group = f"call, batch {batch}"
    benchmark.extra_info |= {"num_threads": NUM_THREADS, "precision": precision}
    result = benchmark(make(case, batch))
    want = evaluate(case.network, case.spec.network_inputs(), case.inputs(batch))
    assert np.linalg.norm(result - want) / np.linalg.norm(want) < TOLERANCE[precision]


@pytest.mark.parametrize("target", ["onnxruntime:cpu", "openvino:cpu"])
@pytest.mark.parametrize("how", ["default", "program"])
def test_load(target: str, how: str, case: Case, benchmark: BenchmarkFixture) -> None:
    """From files to a program that can be called; `default` starts from the exported graph."""
    benchmark.group = f"load, {target}"
    default = {"onnxruntime:cpu": onnxruntime_default, "openvino:cpu": openvino_default}[target]
    if how == "default":
        call = benchmark.pedantic(default, args=(case, 1), rounds=5)
    else:
        load, files = compiled(case, target, "fp32", 1)
        benchmark.extra_info["bytes"] = sum(file.stat().st_size for file in files)
        program = benchmark.pedantic(load, rounds=5)
        for name, value in case.inputs(1).items():
            program.inputs[name][:] = value

        def call() -> Array:
            program.run()
            output: Array = program.outputs["prediction"]
            return output

    want = evaluate(case.network, case.spec.network_inputs(), case.inputs(1))
    assert np.linalg.norm(call() - want) / np.linalg.norm(want) < TOLERANCE["fp32"]
