"""Programs whose tensors live on the GPU: what a captured request is made of.

Legend: B evaluations of a network per call.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.base import Backend, CompileOptions
from distill_rt.backends.cuda.driver import Driver
from distill_rt.core.spec import TensorSpec

Array = NDArray[Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceTensor:
    """A contiguous tensor on the GPU: where it is, its shape, its NumPy dtype."""

    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class DeviceProgram(Protocol):
    """One compiled component on the GPU, with static shapes. Not for use by two threads at once."""

    @property
    def inputs(self) -> Mapping[str, DeviceTensor]:
        """Where to write inputs; the addresses never change."""
        ...

    @property
    def outputs(self) -> Mapping[str, DeviceTensor]:
        """Where the outputs of the last `enqueue` are; valid until the next one."""
        ...

    def enqueue(self, stream: int) -> None:
        """Put one call on a stream; does not wait, and can be captured after it has run once."""
        ...


class Graph(Protocol):
    """Captured work."""

    def launch(self, stream: int) -> None: ...


class CudaBackend(Backend, Protocol):
    """A backend with ``runs_on = "cuda"``."""

    def driver(self) -> Driver:
        """The GPU that its engines run on, the same object every time.

        Raises:
            TargetError: none here.
        """
        ...

    def load_device(
        self,
        directory: Path,
        files: Sequence[str],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batch: int,
        options: CompileOptions,
    ) -> DeviceProgram:
        """As `Backend.load`, for tensors on the GPU. Weights are shared by all programs of one file."""
        ...

    def capture(self, stream: int, record: Callable[[], None]) -> Graph:
        """Capture what `record` puts on a stream. `Driver.capture`, unless the library has memory of its own to tell of it."""
        ...


class HostProgram:
    """A `Program` on host arrays over a `DeviceProgram`: copy in, run, copy out, wait. For the gate."""

    def __init__(self, driver: Driver, program: DeviceProgram) -> None:
        self._driver = driver
        self._program = program
        self._stream = driver.create_stream(self)
        tensors = [*program.inputs.items(), *program.outputs.items()]
        self._pinned = [driver.allocate_pinned(tensor.num_bytes) for _, tensor in tensors]
        arrays = {
            name: pinned.array.view(tensor.dtype).reshape(tensor.shape)
            for (name, tensor), pinned in zip(tensors, self._pinned, strict=True)
        }
        self.inputs: Mapping[str, Array] = {name: arrays[name] for name in program.inputs}
        self.outputs: Mapping[str, Array] = {name: arrays[name] for name in program.outputs}

    def run(self) -> None:
        driver, stream = self._driver, self._stream
        driver.use()
        for name, tensor in self._program.inputs.items():
            driver.to_device(tensor.address, self.inputs[name].ctypes.data, tensor.num_bytes, stream)
        self._program.enqueue(stream)
        for name, tensor in self._program.outputs.items():
            driver.to_host(self.outputs[name].ctypes.data, tensor.address, tensor.num_bytes, stream)
        driver.synchronize(stream)
