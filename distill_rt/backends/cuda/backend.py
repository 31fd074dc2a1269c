"""What the backends on NVIDIA GPUs share: one driver, weights loaded once, programs for host arrays and for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal
from weakref import WeakValueDictionary

from distill_rt.backends.base import CompileOptions, Program
from distill_rt.backends.cuda.driver import Driver, open_driver
from distill_rt.backends.cuda.failures import out_of_memory
from distill_rt.backends.cuda.programs import DeviceProgram, Graph, HostProgram
from distill_rt.core.spec import TensorSpec


class GpuBackend:
    """Base of a `CudaBackend`; a subclass says what a file is and what runs it."""

    runs_on: ClassVar[Literal["host", "cuda"]] = "cuda"

    def __init__(self, capabilities: tuple[int, ...] | None) -> None:
        """`capabilities`: compute capabilities that engines are for; None: of whatever GPU there is."""
        self._capabilities = capabilities
        self._driver: Driver | None = None
        self._opened: WeakValueDictionary[Path, Any] = WeakValueDictionary()

    def open_file(
        self, directory: Path, files: Sequence[str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> Any:
        """What `compile` wrote, loaded with its weights; shared by all programs of the file, which keep it."""
        raise NotImplementedError

    def make_program(
        self, opened: Any, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batch: int
    ) -> DeviceProgram:
        """A program of an opened file."""
        raise NotImplementedError

    def driver(self) -> Driver:
        """See `CudaBackend.driver`."""
        if self._driver is None:
            self._driver = open_driver(self._capabilities)
        return self._driver

    def machine(self) -> str:
        """See `Backend.machine`."""
        return str(self.driver().device)

    def load(
        self,
        directory: Path,
        files: Sequence[str],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batch: int,
        options: CompileOptions,
    ) -> Program:
        """See `Backend.load`."""
        return HostProgram(self.driver(), self.load_device(directory, files, inputs, outputs, batch, options))

    def load_device(
        self,
        directory: Path,
        files: Sequence[str],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batch: int,
        options: CompileOptions,
    ) -> DeviceProgram:
        """See `CudaBackend.load_device`.

        Raises:
            TargetError: the library refuses the file.
            ResourceError: not enough GPU memory; names the need and what is free.
        """
        driver = self.driver()
        driver.use()
        path = directory / files[0]
        opened = self._opened.get(path)
        if opened is None:
            need = path.stat().st_size  # nearly all of a compiled file is weights
            free, total = driver.free_and_total_bytes()
            if need > free:
                raise out_of_memory(need, free, total, str(driver.device), f"the weights in {path.name}")
            opened = self.open_file(directory, files, inputs, outputs)
            self._opened[path] = opened
        return self.make_program(opened, inputs, outputs, batch)

    def capture(self, stream: int, record: Callable[[], None]) -> Graph:
        """See `CudaBackend.capture`."""
        return self.driver().capture(stream, record)
