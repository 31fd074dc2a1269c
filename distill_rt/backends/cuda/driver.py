"""The CUDA driver: memory, copies, streams and captured graphs of one GPU, through cuda.bindings.

A dozen calls, each checked. Everything is asynchronous on a stream of ours; the default stream is never used, because it waits
for all others. Not run on a GPU yet.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.cuda.failures import OUT_OF_MEMORY, driver_error, out_of_memory, result_name
from distill_rt.backends.cuda_device import CudaDevice, cuda_devices
from distill_rt.core.errors import TargetError
from distill_rt.core.optional import require

STREAM_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: no waiting for the default stream of other libraries
ALIGNMENT = 256
"""Bytes. What TensorRT wants of tensor addresses, and what allocations have."""


class DeviceMemory:
    """Memory of the GPU, freed with the object. Whoever has work with it on a stream keeps it until that is done."""

    def __init__(self, driver: Driver, address: int, num_bytes: int) -> None:
        self.address = address
        self.num_bytes = num_bytes
        driver.release_with(self, driver.api.cuMemFree, address)


class PinnedMemory:
    """Host memory that the GPU copies from and to without a detour; `array` is uint8 over all of it."""

    def __init__(self, driver: Driver, address: int, num_bytes: int) -> None:
        self.address = address
        self.array: NDArray[np.uint8] = np.frombuffer(
            memoryview((ctypes.c_uint8 * num_bytes).from_address(address)), np.uint8
        )
        driver.release_with(self, driver.api.cuMemFreeHost, address)


class CapturedGraph:
    """Work captured from a stream, launched with one call."""

    def __init__(self, driver: Driver, executable: Any) -> None:
        self._driver = driver
        self._executable = executable
        driver.release_with(self, driver.api.cuGraphExecDestroy, executable)

    def launch(self, stream: int) -> None:
        self._driver.check(
            self._driver.api.cuGraphLaunch(self._executable, stream), "cannot launch the captured request"
        )


class Driver:
    """One GPU of this process.

    Args:
        api: the module `cuda.bindings.driver`.
        device: which GPU.
    """

    def __init__(self, api: Any, device: CudaDevice) -> None:
        self.api = api
        self.device = device
        self.check(api.cuInit(0), "cannot start")
        handle = self.check(api.cuDeviceGet(device.index), "cannot find the GPU")
        self._loading = threading.Lock()
        self._loading_stream: int | None = None
        # The primary context is the one that TensorRT, torch and cuda.core use.
        self._context = self.check(api.cuDevicePrimaryCtxRetain(handle), "cannot use the GPU")
        self.use()

    def use(self) -> None:
        """Make the GPU current in this thread; every thread that calls anything else does so first. Under a microsecond."""
        self.check(self.api.cuCtxSetCurrent(self._context), "cannot use the GPU in this thread")

    def release_with(self, owner: object, release: Callable[[Any], Any], handle: Any) -> None:
        """Call ``release(handle)`` when `owner` is gone, in whatever thread that happens."""
        finalizer = weakref.finalize(owner, _release, self.api, self._context, release, handle)
        finalizer.atexit = False  # the end of the process frees everything, and the driver may be gone by then

    def check(self, answer: Any, what: str) -> Any:
        """The value of a driver's answer ``(CUresult, value...)``.

        Raises:
            DistillError: the result is not success.
        """
        code, *values = answer
        if int(code):
            raise driver_error(int(code), result_name(code), what)
        return values[0] if len(values) == 1 else tuple(values) or None

    # -- memory ------------------------------------------------------------------------------------------------------------

    def free_and_total_bytes(self) -> tuple[int, int]:
        """Memory of the GPU that is free now, and all of it."""
        free, total = self.check(self.api.cuMemGetInfo(), "cannot ask for the GPU's memory")
        return int(free), int(total)

    def allocate(self, num_bytes: int, what: str) -> DeviceMemory:
        """Memory of the GPU, aligned to `ALIGNMENT`.

        Raises:
            ResourceError: not enough; names `what` for, the need and what is free.
        """
        num_bytes = max(num_bytes, ALIGNMENT)
        code, address = self.api.cuMemAlloc(num_bytes)
        if int(code) == OUT_OF_MEMORY:
            raise out_of_memory(num_bytes, *self.free_and_total_bytes(), str(self.device), what)
        self.check((code,), f"cannot allocate {what}")
        assert int(address) % ALIGNMENT == 0
        return DeviceMemory(self, int(address), num_bytes)

    def allocate_pinned(self, num_bytes: int) -> PinnedMemory:
        """Zeroed pinned host memory."""
        address = self.check(self.api.cuMemHostAlloc(max(num_bytes, 1), 0), "cannot allocate pinned host memory")
        pinned = PinnedMemory(self, int(address), max(num_bytes, 1))
        pinned.array.fill(0)
        return pinned

    # -- work on a stream --------------------------------------------------------------------------------------------------

    def create_stream(self, owner: object) -> int:
        """Handle of a new stream that never waits for the default one; it goes with `owner`."""
        stream = int(self.check(self.api.cuStreamCreate(STREAM_NON_BLOCKING), "cannot create a stream"))
        self.release_with(owner, self.api.cuStreamDestroy, stream)
        return stream

    def to_device(self, address: int, host_address: int, num_bytes: int, stream: int) -> None:
        self.check(self.api.cuMemcpyHtoDAsync(address, host_address, num_bytes, stream), "cannot copy to the GPU")

    def to_host(self, host_address: int, address: int, num_bytes: int, stream: int) -> None:
        self.check(self.api.cuMemcpyDtoHAsync(host_address, address, num_bytes, stream), "cannot copy from the GPU")

    def copy(self, address: int, source: int, num_bytes: int, stream: int) -> None:
        """Device to device."""
        self.check(self.api.cuMemcpyDtoDAsync(address, source, num_bytes, stream), "cannot copy on the GPU")

    def zero(self, address: int, num_bytes: int, stream: int) -> None:
        self.check(self.api.cuMemsetD8Async(address, 0, num_bytes, stream), "cannot clear memory of the GPU")

    def synchronize(self, stream: int) -> None:
        """Wait until everything on the stream is done; here the errors of its work come up."""
        self.check(self.api.cuStreamSynchronize(stream), "work on the GPU failed")

    def upload(self, array: NDArray[Any], what: str) -> DeviceMemory:
        """A copy of an array on the GPU, complete on return."""
        memory = self.allocate(array.nbytes, what)
        self.write(memory.address, array)
        return memory

    def write(self, address: int, array: NDArray[Any]) -> None:
        """Copy an array to the GPU and wait for it: for loading, not for requests."""
        array = np.ascontiguousarray(array)
        with self._loading:
            if self._loading_stream is None:
                self._loading_stream = self.create_stream(self)
            self.to_device(address, array.ctypes.data, array.nbytes, self._loading_stream)
            self.synchronize(self._loading_stream)

    def capture(self, stream: int, record: Callable[[], None]) -> CapturedGraph:
        """Capture what `record` puts on a stream, and make it ready to launch. Nothing runs.

        Other threads may use the GPU meanwhile (capture mode "thread local").

        Raises:
            TargetError: something that `record` did cannot be captured.
        """
        mode = self.api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        self.check(self.api.cuStreamBeginCapture(stream, mode), "cannot begin to capture a request")
        try:
            record()
        except BaseException:
            code, graph = self.api.cuStreamEndCapture(
                stream
            )  # the stream must leave capture mode; its graph is of no use
            if not int(code):
                self.api.cuGraphDestroy(graph)
            raise
        graph = self.check(self.api.cuStreamEndCapture(stream), "cannot capture the request")
        try:
            executable = self.check(self.api.cuGraphInstantiate(graph, 0), "cannot instantiate the captured request")
        finally:
            self.api.cuGraphDestroy(graph)
        self.check(self.api.cuGraphUpload(executable, stream), "cannot upload the captured request")
        return CapturedGraph(self, executable)


def _release(api: Any, context: Any, release: Callable[[Any], Any], handle: Any) -> None:
    api.cuCtxSetCurrent(context)
    release(handle)


def open_driver(capabilities: tuple[int, ...] | None) -> Driver:
    """The driver on the first GPU of one of these compute capabilities (None: of any).

    Raises:
        TargetError: there is no such GPU or no driver, or cuda-bindings is not installed.
    """
    devices, reason = (
        cuda_devices()
    )  # before cuda.bindings, whose own error for a missing driver is three paragraphs long
    if reason:
        raise TargetError(
            f"this machine has no usable GPU: {reason}",
            code="driver-missing",
            hint="install the NVIDIA driver, or compile the bundle for another target",
        )
    fitting = [device for device in devices if capabilities is None or device.capability in capabilities]
    if not fitting:
        wanted = " or ".join(f"sm{capability}" for capability in capabilities or ())
        raise TargetError(
            f"this machine has {', '.join(map(str, devices))}, not {wanted}",
            code="gpu-missing",
            hint="compile the bundle for this machine's GPU",
        )
    return Driver(require("cuda.bindings.driver", extra="cuda"), fitting[0])
