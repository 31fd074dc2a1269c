"""The driver's calls, and what its refusals become."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from fake_cuda import GPU, FakeCuda, Result

from distill_rt.backends.cuda import driver as driver_module
from distill_rt.backends.cuda.arena import Arena, planned_bytes
from distill_rt.backends.cuda.driver import Driver, open_driver
from distill_rt.backends.cuda_device import CudaDevice
from distill_rt.core.errors import ResourceError, TargetError


@pytest.fixture
def cuda() -> FakeCuda:
    return FakeCuda(total_bytes=1 << 20)


@pytest.fixture
def driver(cuda: FakeCuda) -> Driver:
    return Driver(cuda, GPU)


def test_what_goes_up_comes_down(driver: Driver) -> None:
    values = np.arange(1000, dtype=np.float32)
    memory = driver.upload(values, "numbers")
    pinned = driver.allocate_pinned(values.nbytes)
    stream = driver.create_stream(driver)
    driver.to_host(pinned.address, memory.address, values.nbytes, stream)
    assert not pinned.array.any()  # nothing has run yet
    driver.synchronize(stream)
    assert np.array_equal(pinned.array.view(np.float32), values)


def test_memory_goes_with_its_owner(driver: Driver, cuda: FakeCuda) -> None:
    memory = driver.allocate(5000, "something")
    pinned = driver.allocate_pinned(10)
    assert cuda.used_bytes == 5000
    assert len(cuda.pinned) == 1
    del memory, pinned
    gc.collect()
    assert cuda.used_bytes == 0
    assert not cuda.pinned


def test_out_of_memory_names_the_need_and_what_is_free(driver: Driver) -> None:
    kept = driver.allocate(1 << 19, "half")
    with pytest.raises(ResourceError) as caught:
        driver.allocate(3 << 20, "the weights")
    assert "the weights: 3.0 MiB are needed, 0.5 MiB of 1.0 MiB are free on Imaginary H100 (sm90)" in str(caught.value)
    assert caught.value.details == {"needed_bytes": 3 << 20, "free_bytes": 1 << 19, "total_bytes": 1 << 20}
    assert kept.num_bytes == 1 << 19


def test_captured_work_runs_when_it_is_launched(driver: Driver, cuda: FakeCuda) -> None:
    source, target = driver.upload(np.zeros(4, np.int32), "a"), driver.allocate(16, "b")
    stream = driver.create_stream(driver)
    pinned = driver.allocate_pinned(16)

    def record() -> None:
        driver.to_device(source.address, pinned.address, 16, stream)
        driver.copy(target.address, source.address, 16, stream)
        driver.to_host(pinned.address, target.address, 16, stream)

    graph = driver.capture(stream, record)
    driver.synchronize(stream)
    pinned.array.view(np.int32)[:] = 7
    graph.launch(stream)
    driver.synchronize(stream)
    assert (pinned.array.view(np.int32) == 7).all()
    assert cuda.num_graphs == 1
    del graph
    gc.collect()
    assert cuda.num_graphs == 0


def test_what_cannot_be_captured_is_refused_and_the_stream_still_works(driver: Driver) -> None:
    stream = driver.create_stream(driver)
    with pytest.raises(TargetError) as caught:
        driver.capture(stream, lambda: driver.synchronize(stream))
    assert caught.value.code == "capture-failed"
    assert "STREAM_CAPTURE_UNSUPPORTED (900)" in caught.value.message
    assert "--no-capture" in caught.value.hint
    driver.synchronize(stream)


def test_an_error_of_the_recording_is_not_hidden(driver: Driver) -> None:
    stream = driver.create_stream(driver)

    def record() -> None:
        raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        driver.capture(stream, record)
    driver.synchronize(stream)


@pytest.mark.parametrize(
    ("result", "code", "advice"),
    [
        (Result.CUDA_ERROR_ILLEGAL_ADDRESS, "gpu-work-failed", "start it again"),
        (Result.CUDA_ERROR_INVALID_HANDLE, "cuda-error", "nvidia-smi"),
    ],
)
def test_failures_of_work_come_up_when_waiting(
    driver: Driver, cuda: FakeCuda, result: Result, code: str, advice: str
) -> None:
    cuda.fails["cuStreamSynchronize"] = result
    with pytest.raises(TargetError) as caught:
        driver.synchronize(driver.create_stream(driver))
    assert caught.value.code == code
    assert result.name in caught.value.message
    assert advice in caught.value.hint


def test_an_old_driver_says_so(cuda: FakeCuda) -> None:
    class Unlisted(int):
        name = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"

    cuda.fails["cuInit"] = Unlisted(803)  # type: ignore[assignment]
    with pytest.raises(TargetError, match="update the NVIDIA driver") as caught:
        Driver(cuda, GPU)
    assert caught.value.code == "driver-too-old"


def test_an_arena_is_what_was_planned(driver: Driver, cuda: FakeCuda) -> None:
    shapes = {"a": ((3, 5), np.float32), "b": ((1,), np.uint8), "c": ((2, 64), np.int64)}
    arena = Arena(driver, shapes, "buffers")
    assert cuda.used_bytes == planned_bytes(shapes) == 256 + 256 + 1024
    assert arena["b"].address == arena["a"].address + 256
    assert [tensor.num_bytes for tensor in arena.tensors.values()] == [60, 1, 1024]


def test_no_driver_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver_module, "cuda_devices", lambda: ((), "no NVIDIA driver (libcuda.so.1 is not there)"))
    with pytest.raises(TargetError, match="no usable GPU: no NVIDIA driver") as caught:
        open_driver(None)
    assert caught.value.code == "driver-missing"


def test_another_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = CudaDevice(index=0, name="Imaginary 4090", capability=89)
    monkeypatch.setattr(driver_module, "cuda_devices", lambda: ((other,), ""))
    with pytest.raises(TargetError, match=r"has Imaginary 4090 \(sm89\), not sm90 or sm100"):
        open_driver((90, 100))
