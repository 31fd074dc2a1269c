"""What of ``inductor:cuda`` needs no GPU: refusals, fixed addresses, and the order of work on imaginary streams."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from distill_rt.backends.base import CompileOptions
from distill_rt.backends.cuda_device import CudaDevice
from distill_rt.backends.inductor import backend as backend_module
from distill_rt.backends.inductor import device_programs, toolchain
from distill_rt.backends.inductor.backend import InductorCuda
from distill_rt.backends.inductor.device_programs import InductorDeviceProgram, capture_graph
from distill_rt.backends.inductor.package import Package
from distill_rt.core.errors import ResourceError, TargetError
from distill_rt.core.spec import TensorSpec

H200 = CudaDevice(index=0, name="NVIDIA H200", capability=90)
T4 = CudaDevice(index=0, name="Tesla T4", capability=75)
K80 = CudaDevice(index=0, name="Tesla K80", capability=37)

INPUTS = (
    TensorSpec(name="sample", dtype="float32", shape=("B", 2)),
    TensorSpec(name="label", dtype="int64", shape=("B",)),
)
OUTPUTS = (TensorSpec(name="prediction", dtype="float32", shape=("B", 2)),)


class FakeStreams:
    """Which stream is current, and what happened on it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current: Any = "default"
        self.log: list[tuple[Any, str]] = []
        self.fails_to_end = False
        cuda = torch.cuda
        monkeypatch.setattr(cuda, "Stream", lambda: _Stream("own", self))
        monkeypatch.setattr(cuda, "ExternalStream", lambda handle, device: _Stream(handle, self))
        monkeypatch.setattr(cuda, "current_stream", lambda: self.current)
        monkeypatch.setattr(cuda, "stream", self.use)
        monkeypatch.setattr(cuda, "CUDAGraph", lambda: _Graph(self))
        monkeypatch.setattr(cuda, "graph", self.capture)
        device_programs.external_stream.cache_clear()

    @contextlib.contextmanager
    def use(self, stream: _Stream) -> Iterator[None]:
        before, self.current = self.current, stream.name
        try:
            yield
        finally:
            self.current = before

    @contextlib.contextmanager
    def capture(self, graph: _Graph, stream: _Stream, capture_error_mode: str) -> Iterator[None]:
        """As torch's: where ending fails, the current stream is not put back and the error is the end's."""
        self.current = stream.name
        self.log.append((self.current, f"begin {capture_error_mode}"))
        try:
            yield
        finally:
            self.log.append((self.current, "end"))
            if self.fails_to_end:
                raise RuntimeError("CUDA error: operation failed due to a previous error during capture\nmore")
        self.current = "default"


class _Stream:
    def __init__(self, name: Any, streams: FakeStreams) -> None:
        self.name, self._streams = name, streams

    def wait_stream(self, other: Any) -> None:
        self._streams.log.append((self.name, f"wait for {other}"))

    def synchronize(self) -> None:
        self._streams.log.append((self.name, "synchronize"))


class _Graph:
    def __init__(self, streams: FakeStreams) -> None:
        self._streams = streams

    def replay(self) -> None:
        self._streams.log.append((self._streams.current, "replay"))


class FakeLoader:
    """A package that adds the label to the sample."""

    def __init__(self, streams: FakeStreams) -> None:
        self._streams = streams
        self.error: Exception | None = None
        self.dtype = torch.float32

    def boxed_run(self, inputs: list[Tensor]) -> list[Tensor]:
        if self.error is not None:
            raise self.error
        assert not torch.backends.cudnn.allow_tf32, "float32 would be TF32"
        self._streams.log.append((self._streams.current, "run"))
        sample, label = inputs
        return [(sample + label[:, None]).T.contiguous().T.to(self.dtype)]  # not contiguous


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStreams]:
    yield FakeStreams(monkeypatch)
    device_programs.external_stream.cache_clear()


@pytest.fixture
def loader(streams: FakeStreams) -> FakeLoader:
    return FakeLoader(streams)


def make_program(loader: FakeLoader) -> InductorDeviceProgram:
    return InductorDeviceProgram(Package(loader, Path("network0.pt2")), INPUTS, OUTPUTS, 3, "cpu")


def memory(tensor: Any) -> np.ndarray[Any, Any]:
    """The bytes at an address, which here is the host's."""
    import ctypes

    raw = (ctypes.c_uint8 * tensor.num_bytes).from_address(tensor.address)
    return np.frombuffer(raw, tensor.dtype).reshape(tensor.shape)


# -- programs ---------------------------------------------------------------------------------------------------------------


def test_a_program_is_warm_before_its_first_call(streams: FakeStreams, loader: FakeLoader) -> None:
    program = make_program(loader)
    assert streams.log == [("own", "wait for default"), ("own", "run"), ("own", "synchronize")]
    assert program.outputs["prediction"].shape == (3, 2)  # known before anything is enqueued


def test_inputs_stay_where_they_are_and_outputs_are_those_of_the_last_call(
    streams: FakeStreams, loader: FakeLoader
) -> None:
    program = make_program(loader)
    addresses = {name: tensor.address for name, tensor in program.inputs.items()}
    for value in (1.0, 2.0):
        memory(program.inputs["sample"])[:] = [[value, 10 * value]] * 3
        memory(program.inputs["label"])[:] = [0, 1, 2]
        program.enqueue(77)
        assert streams.log[-1] == (77, "run")
        assert memory(program.outputs["prediction"]).tolist() == [[value + i, 10 * value + i] for i in range(3)]
        assert {name: tensor.address for name, tensor in program.inputs.items()} == addresses
    assert streams.current == "default"


def test_tf32_is_put_back(streams: FakeStreams, loader: FakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True
        make_program(loader).enqueue(1)
        assert torch.backends.cudnn.allow_tf32
    finally:
        torch.backends.cudnn.allow_tf32 = before


def test_a_package_with_other_outputs(streams: FakeStreams, loader: FakeLoader) -> None:
    loader.dtype = torch.float16
    with pytest.raises(TargetError, match=r"returns prediction as torch\.float16 \(3, 2\), the manifest says float32"):
        make_program(loader)


def test_errors_of_a_call(streams: FakeStreams, loader: FakeLoader) -> None:
    program = make_program(loader)
    loader.error = torch.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 2 GiB. If reserved but unallocated, ..."
    )
    with pytest.raises(ResourceError, match=r"Tried to allocate 2 GiB\. \(close other") as memory_error:
        program.enqueue(1)
    assert memory_error.value.code == "gpu-memory"
    loader.error = RuntimeError("run_func_ failed\nat file.cpp")
    with pytest.raises(
        TargetError, match=r"torch cannot run network0\.pt2: RuntimeError: run_func_ failed \(compile again"
    ):
        program.enqueue(1)
    assert streams.current == "default"


# -- captured graphs ----------------------------------------------------------------------------------------------------------


def test_a_capture_records_on_its_stream(streams: FakeStreams, loader: FakeLoader) -> None:
    program = make_program(loader)
    streams.log.clear()
    graph = capture_graph(5, lambda: [program.enqueue(5), program.enqueue(5)][0])
    assert streams.log == [(5, "begin thread_local"), (5, "run"), (5, "run"), (5, "end")]
    graph.launch(6)
    assert streams.log[-1] == (6, "replay")
    assert streams.current == "default"


def test_a_capture_that_cannot_end(streams: FakeStreams) -> None:
    streams.fails_to_end = True
    with pytest.raises(TargetError, match=r"due to a previous error during capture \(load it") as caught:
        capture_graph(5, lambda: None)
    assert caught.value.code == "capture-failed"
    assert streams.current == "default"  # torch itself would leave the capture's


@pytest.mark.parametrize("fails_to_end", [False, True])
def test_the_error_of_what_was_recorded_wins(fails_to_end: bool, streams: FakeStreams) -> None:
    streams.fails_to_end = fails_to_end
    failure = ResourceError("no memory", code="gpu-memory", hint="free some")

    def record() -> None:
        raise failure

    with pytest.raises(ResourceError) as caught:
        capture_graph(5, record)
    assert caught.value is failure
    assert streams.current == "default"
    streams.fails_to_end = False
    capture_graph(5, lambda: None)  # and the next one can begin


def test_a_recorded_runtime_error_is_a_capture_that_failed(streams: FakeStreams) -> None:
    def record() -> None:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(TargetError, match="not permitted when stream is capturing"):
        capture_graph(5, record)


# -- the machine --------------------------------------------------------------------------------------------------------------


def on(monkeypatch: pytest.MonkeyPatch, *devices: CudaDevice, cuda: str | None = "12.8") -> None:
    reason = "" if devices else "no NVIDIA driver"
    for module in (backend_module, toolchain):
        monkeypatch.setattr(module, "cuda_devices", lambda: (devices, reason))
        monkeypatch.setattr(module, "torch_cuda_version", lambda: cuda)
    monkeypatch.setattr(toolchain, "installed", lambda module: True)


def test_a_machine_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, H200)
    backend = InductorCuda()
    assert (backend.cannot_build(), backend.cannot_run()) == (None, None)
    assert backend.machine() == "NVIDIA H200 (sm90)"
    parts = backend.fingerprint_parts(CompileOptions(precision="fp16", num_threads=4))
    assert parts["gpu"] == {"name": "NVIDIA H200", "capability": 90}
    assert parts["cuda"] == "12.8"
    assert parts["settings"]["freezing"] is True
    # Threads of the host decide nothing here.
    assert parts == backend.fingerprint_parts(CompileOptions(precision="fp16", num_threads=1))


@pytest.mark.parametrize(
    ("devices", "cuda", "missing", "reason"),
    [
        ([], "12.8", "", "no usable GPU: no NVIDIA driver"),
        ([H200], None, "", "torch is built without CUDA"),
        ([K80], "12.8", "", "from sm70 on, not for Tesla K80"),
        ([H200], "12.8", "cuda.core", "needs the package 'cuda-core'"),
    ],
)
def test_machines_that_cannot_run(
    devices: list[CudaDevice], cuda: str | None, missing: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    on(monkeypatch, *devices, cuda=cuda)
    monkeypatch.setattr(toolchain, "installed", lambda module: module != missing)
    backend = InductorCuda()
    assert reason in str(backend.cannot_run())
    assert backend.cannot_build() == backend.cannot_run()


@pytest.mark.parametrize("missing", ["triton", "g++"])
def test_machines_that_run_and_cannot_build(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, H200)
    if missing == "triton":
        monkeypatch.setattr(toolchain, "installed", lambda module: module != missing)
    monkeypatch.setenv("CXX", "g++" if missing == "triton" else "/nowhere/g++")
    backend = InductorCuda()
    assert backend.cannot_run() is None
    assert missing in str(backend.cannot_build())


def test_bfloat16_begins_with_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    on(monkeypatch, T4)
    InductorCuda().check(CompileOptions(precision="fp16", num_threads=1))
    with pytest.raises(TargetError, match="T4") as caught:
        InductorCuda().check(CompileOptions(precision="bf16", num_threads=1))
    assert caught.value.details == {"precisions": ["fp16", "fp32"]}


def test_the_cuda_version_is_torchs_own() -> None:
    assert toolchain.torch_cuda_version() == torch.version.cuda


def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "network0.pt2").write_bytes(bytes(4096))

    class Full:
        device = H200

        def use(self) -> None: ...

        def free_and_total_bytes(self) -> tuple[int, int]:
            return 1024, 1 << 30

    backend = InductorCuda()
    monkeypatch.setattr(backend, "driver", Full)
    options = CompileOptions(precision="fp16", num_threads=1)
    with pytest.raises(ResourceError, match=r"the weights in network0\.pt2"):
        backend.load_device(tmp_path, ["network0.pt2"], INPUTS, OUTPUTS, 3, options)


def test_programs_of_one_file_share_its_weights(
    tmp_path: Path, streams: FakeStreams, loader: FakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    from distill_rt.backends.inductor import package

    (tmp_path / "network0.pt2").write_bytes(bytes(16))
    loaded: list[Path] = []

    def load(path: Path, *, device: str) -> Package:
        loaded.append(path)
        return Package(loader, path)

    class Roomy:
        def use(self) -> None: ...

        def free_and_total_bytes(self) -> tuple[int, int]:
            return 1 << 30, 1 << 30

    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *shape, dtype, device: zeros(*shape, dtype=dtype))
    monkeypatch.setattr(package, "load_package", load)
    backend = InductorCuda()
    monkeypatch.setattr(backend, "driver", Roomy)
    options = CompileOptions(precision="fp16", num_threads=1)
    one, two = (backend.load_device(tmp_path, ["network0.pt2"], INPUTS, OUTPUTS, 3, options) for _ in range(2))
    assert loaded == [tmp_path / "network0.pt2"]
    assert one.inputs["sample"].address != two.inputs["sample"].address
