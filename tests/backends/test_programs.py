"""Both backends against ONNX's reference evaluator, and the promises of `Program`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from handmade import make_model, make_spec
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from distill_rt.backends import processor
from distill_rt.backends.base import CompileOptions, Program
from distill_rt.backends.registry import BACKENDS, Target, backend_for
from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.errors import TargetError, UsageError

Array = NDArray[Any]

SPEC = make_spec("embedded")
COMPONENT = Component(
    file="network0.onnx", inputs=SPEC.network_inputs(), outputs=SPEC.network_outputs(), opset=21, initializers={}
)
HAS_BF16 = bool({"avx512_bf16", "amx_bf16", "bf16"} & processor.instruction_sets())
# (target, precision) -> largest relative L2 distance to the reference
PRECISIONS = [
    ("onnxruntime:cpu", "fp32", 2e-6),
    ("openvino:cpu", "fp32", 2e-6),
    pytest.param("openvino:cpu", "bf16", 2e-2, marks=pytest.mark.skipif(not HAS_BF16, reason="no bfloat16 here")),
]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("graph") / "network0.onnx"
    onnx.save(make_model(SPEC), str(path))
    return path


def compile_and_load(
    graph: Path, directory: Path, target: str, batch: int = 2, precision: Precision = "fp32", num_threads: int = 1
) -> Program:
    backend = backend_for(Target.parse(target))
    options = CompileOptions(precision=precision, num_threads=num_threads)
    files = backend.compile(graph, COMPONENT, [batch], directory, "network0.b1", options)
    assert files
    assert {path.name for path in directory.iterdir()} == set(files)  # everything written is named
    return backend.load(directory, files, COMPONENT.inputs, COMPONENT.outputs, batch, options)


def inputs_for(batch: int, seed: int = 0, time: float = 500.0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "sample": rng.standard_normal((batch, *SPEC.sample_shape)).astype(np.float32),
        "time": np.full(batch, time, np.float32),
        "label": rng.integers(0, 4, batch),
        "guidance": rng.uniform(1, 4, batch).astype(np.float32),
    }


def call(program: Program, inputs: dict[str, Array]) -> Array:
    for name, value in inputs.items():
        program.inputs[name][:] = value
    program.run()
    return program.outputs["prediction"].copy()


def relative(got: Array, want: Array) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


@pytest.mark.parametrize(("target", "precision", "bar"), PRECISIONS)
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_answers_are_those_of_the_reference(
    target: str, precision: Precision, bar: float, batch: int, graph: Path, tmp_path: Path
) -> None:
    program = compile_and_load(graph, tmp_path, target, batch, precision, num_threads=2)
    reference = ReferenceEvaluator(onnx.load(str(graph)))
    for seed in range(3):
        inputs = inputs_for(batch, seed)
        assert relative(call(program, inputs), reference.run(None, inputs)[0]) < bar


@pytest.mark.parametrize("target", BACKENDS)
def test_buffers_are_the_contract(target: str, graph: Path, tmp_path: Path) -> None:
    program = compile_and_load(graph, tmp_path, target, batch=3)
    assert {name: (array.shape, array.dtype.name) for name, array in program.inputs.items()} == {
        tensor.name: (tensor.concrete(3), tensor.dtype) for tensor in COMPONENT.inputs
    }
    assert all(array.ctypes.data % 64 == 0 for array in [*program.inputs.values(), *program.outputs.values()])
    before = {name: array.ctypes.data for name, array in program.outputs.items()}
    first = call(program, inputs_for(3, 0))
    second = call(program, inputs_for(3, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(call(program, inputs_for(3, 0)), first)  # nothing is left of the call before
    assert {name: array.ctypes.data for name, array in program.outputs.items()} == before


@pytest.mark.parametrize("target", BACKENDS)
def test_programs_do_not_share_buffers(target: str, graph: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    a, b = (compile_and_load(graph, tmp_path / name, target) for name in "ab")
    want = call(a, inputs_for(2, 0))
    call(b, inputs_for(2, 1))
    assert np.array_equal(a.outputs["prediction"], want)


@pytest.mark.skipif(not HAS_BF16, reason="no bfloat16 here")
def test_bfloat16_keeps_time_exact(graph: Path, tmp_path: Path) -> None:
    """OpenVINO on its own rounds time to 8 bits: 995 and 996 become one, and their sines those of other angles."""
    program = compile_and_load(graph, tmp_path, "openvino:cpu", 2, "bf16")
    reference = ReferenceEvaluator(onnx.load(str(graph)))
    answers = {time: call(program, inputs_for(2, 0, time)) for time in (995.0, 996.0, 998.5, 999.0)}
    for time, answer in answers.items():
        assert relative(answer, reference.run(None, inputs_for(2, 0, time))[0]) < 1e-2, time
    assert not np.array_equal(answers[995.0], answers[996.0])


@pytest.mark.parametrize(
    ("target", "precision", "mentions"),
    [
        ("onnxruntime:cpu", "bf16", "fp32 only, not in bf16"),
        ("onnxruntime:cpu", "fp16", "fp32 only, not in fp16"),
        ("openvino:cpu", "fp16", "fp32 or bf16 or int8, not in fp16"),
    ],
)
def test_a_precision_that_does_not_exist_is_refused(
    target: str, precision: Precision, mentions: str, graph: Path, tmp_path: Path
) -> None:
    with pytest.raises(TargetError, match=mentions) as caught:
        compile_and_load(graph, tmp_path, target, precision=precision)
    assert caught.value.code == "precision-unsupported"
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_needs_its_instructions(graph: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "instruction_sets", lambda: frozenset({"avx2"}))
    with pytest.raises(TargetError, match="no bfloat16 instructions"):
        compile_and_load(graph, tmp_path, "openvino:cpu", precision="bf16")


@pytest.mark.parametrize("target", BACKENDS)
def test_every_setting_is_recorded(target: str) -> None:
    backend = backend_for(Target.parse(target))
    one, two = (backend.fingerprint_parts(CompileOptions(precision="fp32", num_threads=n)) for n in (1, 2))
    assert one != two
    assert one["compiler"].startswith(backend.name)
    assert one["processor"] == processor.identity()
    assert {"fp32", "f32"} & set(map(str, one["settings"].values()))


@pytest.mark.parametrize("target", BACKENDS)
def test_a_file_that_is_none_is_refused_in_one_line(target: str, graph: Path, tmp_path: Path) -> None:
    backend = backend_for(Target.parse(target))
    options = CompileOptions(precision="fp32", num_threads=1)
    (tmp_path / "x").write_bytes(b"not a compiled network")
    with pytest.raises(TargetError) as caught:
        backend.load(tmp_path, ("x",), COMPONENT.inputs, COMPONENT.outputs, 1, options)
    assert caught.value.code == "compiler-refused"
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("target", BACKENDS)
def test_a_graph_that_is_none_is_refused_in_one_line(target: str, tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"\x00\x01 not a graph")
    out = tmp_path / "out"
    out.mkdir()
    backend = backend_for(Target.parse(target))
    with pytest.raises(TargetError) as caught:
        backend.compile(tmp_path / "x.onnx", COMPONENT, [1], out, "x", CompileOptions(precision="fp32", num_threads=1))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("num_threads", [0, 100_000, True, "2"])
def test_threads_out_of_range(num_threads: int) -> None:
    with pytest.raises(UsageError, match=f"num_threads must be an integer of 1 to 1024, got {num_threads!r}"):
        CompileOptions(precision="fp32", num_threads=num_threads)
