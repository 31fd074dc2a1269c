"""Packages on the GPU, and captured graphs that torch's allocator knows of. Not run on a GPU yet.

A package takes its intermediate values and outputs from torch's caching allocator, on the stream that is torch's current one. A
captured graph must find them untouched at every launch, so it is captured by torch, which gives it a pool of its own.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill_rt.backends.cuda.programs import DeviceTensor
from distill_rt.backends.inductor.package import Package, plain_float32
from distill_rt.core.errors import TargetError
from distill_rt.core.spec import TensorSpec

CAPTURING = threading.Lock()
"""torch allows one capture at a time in a process."""


class InductorDeviceProgram:
    """A package with inputs at fixed addresses; its outputs move with every call (`DeviceProgram`)."""

    def __init__(
        self,
        package: Package,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batch: int,
        device: str,
    ) -> None:
        self._package = package
        self._inputs = [
            torch.zeros(spec.concrete(batch), dtype=getattr(torch, spec.dtype), device=device) for spec in inputs
        ]
        self._specs = {spec.name: (spec.concrete(batch), np.dtype(spec.dtype)) for spec in outputs}
        self._outputs: list[Tensor] = []
        self.inputs: Mapping[str, DeviceTensor] = {
            spec.name: _device_tensor(tensor, np.dtype(spec.dtype))
            for spec, tensor in zip(inputs, self._inputs, strict=True)
        }
        # The first call loads kernels, and libraries make their workspaces: neither can be captured.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())  # the zeros above
        self._run_on(stream)
        stream.synchronize()

    @property
    def outputs(self) -> Mapping[str, DeviceTensor]:
        return {
            name: _device_tensor(tensor, dtype)
            for (name, (_, dtype)), tensor in zip(self._specs.items(), self._outputs, strict=True)
        }

    def enqueue(self, stream: int) -> None:
        self._run_on(external_stream(stream))

    def _run_on(self, stream: Any) -> None:
        with torch.cuda.stream(stream), plain_float32():
            # The outputs of the call before stay until this one has its own: whoever reads them does so on this stream.
            results = [result.contiguous() for result in self._package.run(self._inputs)]
        for (name, (shape, dtype)), result in zip(self._specs.items(), results, strict=True):
            if tuple(result.shape) != shape or result.dtype is not getattr(torch, dtype.name):
                raise TargetError(
                    f"{self._package.path.name} returns {name} as {result.dtype} {tuple(result.shape)}, "
                    f"the manifest says {dtype} {shape}",
                    code="compiler-refused",
                    hint="compile it again with --force",
                )
        self._outputs = results


def _device_tensor(tensor: Tensor, dtype: np.dtype[Any]) -> DeviceTensor:
    return DeviceTensor(address=tensor.data_ptr(), shape=tuple(tensor.shape), dtype=dtype)


@functools.lru_cache(maxsize=64)
def external_stream(handle: int) -> Any:
    """A stream of ours as torch sees it. Streams live as long as the process, so their handles name them."""
    return torch.cuda.ExternalStream(handle, device="cuda:0")


class CapturedGraph:
    """Captured work, and the memory that it runs in."""

    def __init__(self, graph: Any) -> None:
        self._graph = graph

    def launch(self, stream: int) -> None:
        with torch.cuda.stream(external_stream(stream)):
            self._graph.replay()


def capture_graph(stream: int, record: Callable[[], None]) -> CapturedGraph:
    """Capture what `record` puts on a stream, by torch's kernels or any others. Nothing runs; other threads may use the GPU.

    Raises:
        TargetError: something that `record` did cannot be captured.
    """
    graph, external = torch.cuda.CUDAGraph(), external_stream(stream)
    failure: BaseException | None = None
    # The outer stream context puts torch's current stream back where ending a capture fails.
    with CAPTURING, torch.cuda.stream(external):
        try:
            with torch.cuda.graph(graph, stream=external, capture_error_mode="thread_local"):
                try:
                    record()
                except BaseException as error:
                    failure = error
                    raise
        except RuntimeError as error:
            if failure is not None and failure is not error:
                raise failure from None  # ending a broken capture fails too, and says less
            raise TargetError(
                f"cannot capture the request: torch answers {next(iter(str(error).strip().splitlines()), 'nothing')}",
                code="capture-failed",
                hint="load it without captured graphs (capture=False, command line: --no-capture), and report this",
            ) from error
    return CapturedGraph(graph)
