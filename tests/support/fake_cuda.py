"""A CUDA driver whose device memory is the host's: for everything around kernels and plans that a GPU is not needed for.

`FakeCuda` answers like the module `cuda.bindings.driver`. Work runs when its stream is synchronized, not before, so a missing
wait shows; captured work is kept and replayed; what the real driver forbids while capturing is an error here too. Kernels run
as their NumPy references (the Triton sources are compared with those elsewhere), on addresses, in the order of the pack's
parameters.
"""

from __future__ import annotations

import ctypes
import enum
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from distill_rt.backends.cuda.kernels import VARIANTS
from distill_rt.backends.cuda_device import CudaDevice
from distill_rt.core.listing import FileEntry
from distill_rt.core.noise import unit_noise
from distill_rt.kernels import reference
from distill_rt.kernels.pack import Image, KernelPack, PackBody, PackedKernel, Parameter
from distill_rt.kernels.triton import row_layout
from distill_rt.kernels.triton.row_layout import WORD
from distill_rt.kernels.triton.variants import PARAMETERS, is_aligned

GPU = CudaDevice(index=0, name="Imaginary H100", capability=90)


class Result(enum.IntEnum):
    CUDA_SUCCESS = 0
    CUDA_ERROR_INVALID_VALUE = 1
    CUDA_ERROR_OUT_OF_MEMORY = 2
    CUDA_ERROR_INVALID_HANDLE = 400
    CUDA_ERROR_ILLEGAL_ADDRESS = 700
    CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED = 900
    CUDA_ERROR_STREAM_CAPTURE_INVALIDATED = 901


OK = Result.CUDA_SUCCESS
Work = Callable[[], None]


class FakeCuda:
    """`cuda.bindings.driver` as far as `distill_rt.backends.cuda.driver` uses it."""

    CUresult = Result
    CUstreamCaptureMode = SimpleNamespace(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL=1)

    def __init__(self, total_bytes: int = 1 << 30) -> None:
        self.total_bytes = total_bytes
        self.device: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.queues: dict[int, list[Work]] = {}
        self.captures: dict[int, list[Work] | None] = {}
        self.num_launches = 0
        self.num_streams = 0
        self.num_graphs = 0
        self.fails: dict[str, Result] = {}

    # -- start, memory -----------------------------------------------------------------------------------------------------

    def cuInit(self, flags: int) -> Any:
        return (self.fails.get("cuInit", OK),)

    def cuDeviceGet(self, index: int) -> Any:
        return OK, index

    def cuDevicePrimaryCtxRetain(self, device: int) -> Any:
        return OK, "context"

    def cuCtxSetCurrent(self, context: str) -> Any:
        return (OK if context == "context" else Result.CUDA_ERROR_INVALID_VALUE,)

    def cuMemGetInfo(self) -> Any:
        return OK, self.total_bytes - self.used_bytes, self.total_bytes

    @property
    def used_bytes(self) -> int:
        return sum(len(memory) - 256 for memory in self.device.values())

    def cuMemAlloc(self, num_bytes: int) -> Any:
        if any(work is not None for work in self.captures.values()):
            return Result.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED, 0
        if num_bytes > self.total_bytes - self.used_bytes:
            return Result.CUDA_ERROR_OUT_OF_MEMORY, 0
        return OK, self._new(self.device, num_bytes, fill=0xA5)

    def cuMemFree(self, address: int) -> Any:
        return (OK if self.device.pop(address, None) is not None else Result.CUDA_ERROR_INVALID_VALUE,)

    def cuMemHostAlloc(self, num_bytes: int, flags: int) -> Any:
        return OK, self._new(self.pinned, num_bytes, fill=0x5A)

    def cuMemFreeHost(self, address: int) -> Any:
        return (OK if self.pinned.pop(address, None) is not None else Result.CUDA_ERROR_INVALID_VALUE,)

    def _new(self, memories: dict[int, Any], num_bytes: int, fill: int) -> int:
        raw = np.full(num_bytes + 256, fill, np.uint8)  # real memory is not zeroed either
        address = raw.ctypes.data + (-raw.ctypes.data % 256)
        memories[address] = raw
        return address

    def on_device(self, address: int, num_bytes: int) -> bool:
        return any(start <= address and address + num_bytes <= start + len(m) - 256 for start, m in self.device.items())

    # -- streams and graphs ------------------------------------------------------------------------------------------------

    def cuStreamCreate(self, flags: int) -> Any:
        assert flags == 1, "our streams never wait for the default one"
        self.num_streams += 1
        handle = 1000 + self.num_streams
        self.queues[handle], self.captures[handle] = [], None
        return OK, handle

    def cuStreamDestroy(self, stream: int) -> Any:
        assert not self.queues.pop(stream)
        del self.captures[stream]
        return (OK,)

    def put(self, stream: int, work: Work) -> Result:
        """Work of whoever can enqueue: kernels, plans."""
        capture = self.captures[stream]
        (self.queues[stream] if capture is None else capture).append(work)
        return OK

    def cuStreamSynchronize(self, stream: int) -> Any:
        if self.captures[stream] is not None:
            self.fails["cuStreamEndCapture"] = Result.CUDA_ERROR_STREAM_CAPTURE_INVALIDATED
            return (Result.CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED,)
        queue, self.queues[stream] = self.queues[stream], []
        for work in queue:
            work()
        return (self.fails.get("cuStreamSynchronize", OK),)

    def cuStreamBeginCapture(self, stream: int, mode: int) -> Any:
        assert mode == 1, "other threads may use the GPU while we capture"
        assert not self.queues[stream], "the work before a capture must be done"
        self.captures[stream] = []
        return (OK,)

    def cuStreamEndCapture(self, stream: int) -> Any:
        work, self.captures[stream] = self.captures[stream], None
        return self.fails.pop("cuStreamEndCapture", OK), work

    def cuGraphInstantiate(self, graph: list[Work], flags: int) -> Any:
        self.num_graphs += 1
        return self.fails.get("cuGraphInstantiate", OK), list(graph)

    def cuGraphUpload(self, executable: list[Work], stream: int) -> Any:
        return (OK,)

    def cuGraphDestroy(self, graph: list[Work]) -> Any:
        graph.clear()
        return (OK,)

    def cuGraphExecDestroy(self, executable: list[Work]) -> Any:
        self.num_graphs -= 1
        return (OK,)

    def cuGraphLaunch(self, executable: list[Work], stream: int) -> Any:
        self.num_launches += 1
        for work in executable:
            self.put(stream, work)
        return (OK,)

    # -- copies ------------------------------------------------------------------------------------------------------------

    def cuMemcpyHtoDAsync(self, address: int, source: int, num_bytes: int, stream: int) -> Any:
        return (self._copy(address, source, num_bytes, stream, to_device=True, from_device=False),)

    def cuMemcpyDtoHAsync(self, address: int, source: int, num_bytes: int, stream: int) -> Any:
        return (self._copy(address, source, num_bytes, stream, to_device=False, from_device=True),)

    def cuMemcpyDtoDAsync(self, address: int, source: int, num_bytes: int, stream: int) -> Any:
        return (self._copy(address, source, num_bytes, stream, to_device=True, from_device=True),)

    def cuMemsetD8Async(self, address: int, value: int, num_bytes: int, stream: int) -> Any:
        if not self.on_device(address, num_bytes):
            return (Result.CUDA_ERROR_INVALID_VALUE,)
        return (self.put(stream, lambda: _memset(address, value, num_bytes)),)

    def _copy(
        self, address: int, source: int, num_bytes: int, stream: int, *, to_device: bool, from_device: bool
    ) -> Result:
        if self.on_device(address, num_bytes) != to_device or self.on_device(source, num_bytes) != from_device:
            return Result.CUDA_ERROR_INVALID_VALUE
        return self.put(stream, lambda: _memmove(address, source, num_bytes))


def _memmove(address: int, source: int, num_bytes: int) -> None:
    ctypes.memmove(address, source, num_bytes)


def _memset(address: int, value: int, num_bytes: int) -> None:
    ctypes.memset(address, value, num_bytes)


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The array that lies at an address."""
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(memoryview((ctypes.c_uint8 * num_bytes).from_address(address)), dtype).reshape(shape)


def make_pack(directory: Path = Path("imaginary")) -> KernelPack:
    """A pack with everything but machine code."""
    image = Image(
        file=FileEntry(path="none", size=0, sha256="0" * 64),
        arch="sm_90a",
        entry="none",
        shared_bytes=0,
        registers=32,
        stack_bytes=0,
    )
    kernels = {
        variant.name: PackedKernel(
            kernel=variant.kernel,
            state=variant.state,
            network=variant.network,
            features=dict(variant.features),
            aligned=variant.aligned,
            block=variant.block,
            num_warps=variant.num_warps,
            per_image=variant.per_image,
            parameters=tuple(
                Parameter(
                    name=name,
                    kind="integer" if kind in ("i32", "i64") else "pointer",
                    size_bytes=4 if kind == "i32" else 8,
                )
                for name, kind in PARAMETERS[variant.kernel].items()
            ),
            images={"sm_90": image},
        )
        for variant in VARIANTS
    }
    return KernelPack(
        directory=directory,
        body=PackBody(triton_version="0", source_sha256="0", targets=("sm_90",), kernels=kernels),
        images={},
    )


class FakeLauncher:
    """Runs kernels of the pack as their references."""

    note = ""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda
        self.pack = make_pack()
        self.launched: list[str] = []

    def launch(self, stream: int, name: str, grid: tuple[int, int, int], args: list[int]) -> None:
        packed = self.pack.body.kernels[name]
        assert len(args) == len(packed.parameters)
        values = dict(zip((p.name for p in packed.parameters), args, strict=True))
        num_images = grid[0] if packed.per_image else grid[1]
        assert grid == packed.grid(num_images, values["num"])
        if packed.aligned:
            sizes = [values[key] for key in ("num", "state_stride", "F_stride", "x_stride") if key in values]
            assert is_aligned([values[key] for key in ("x_ptr", "out_ptr") if key in values], sizes)
        kernel = KERNELS[packed.kernel]
        self.launched.append(name)
        self.cuda.put(stream, lambda: kernel(num_images, values, packed.features))


def _rows(values: Mapping[str, int], pointer: str, num_images: int) -> np.ndarray:
    return array_at(values[pointer], (num_images, values["num"]), np.float32)


def _packed(values: Mapping[str, int]) -> np.ndarray:
    return array_at(values["row_ptr"], (row_layout.NUM_WORDS,), np.float32)


def _noise(values: Mapping[str, int], packed: np.ndarray, num_images: int) -> np.ndarray:
    seeds = array_at(values["seeds_ptr"], (num_images,), np.int64).view(np.uint64)
    return unit_noise(seeds, (values["num"],), int(packed.view(np.uint32)[WORD["stream"]]))


def _scale(values: Mapping[str, int], packed: np.ndarray, x: np.ndarray) -> None:
    for copy in range(values["num_copies"]):
        address = values["scaled_ptr"] + 4 * copy * values["copy_stride"]
        array_at(address, x.shape, np.float32)[:] = packed[WORD["next_c_in"]] * x


def _guided(num_images: int, values: Mapping[str, int]) -> np.ndarray:
    F, F_u = (_rows(values, pointer, num_images) for pointer in ("F_ptr", "F_u_ptr"))
    w, factor = (array_at(values[key], (num_images, 1), np.float32) for key in ("w_ptr", "factor_ptr"))
    return (F_u + w * (F - F_u)) * factor


def _philox_normal(num_images: int, values: Mapping[str, int], features: Mapping[str, bool]) -> None:
    packed = _packed(values)
    x = packed[WORD["n"]] * _noise(values, packed, num_images)
    _rows(values, "out_ptr", num_images)[:] = x
    _scale(values, packed, x)


def _guidance_factor(num_images: int, values: Mapping[str, int], features: Mapping[str, bool]) -> None:
    F, F_u = (_rows(values, pointer, num_images) for pointer in ("F_ptr", "F_u_ptr"))
    w, phi = (array_at(values[key], (num_images, 1), np.float32) for key in ("w_ptr", "phi_ptr"))
    ratio = F.std(1, keepdims=True) / (F_u + w * (F - F_u)).std(1, keepdims=True)
    array_at(values["factor_ptr"], (num_images, 1), np.float32)[:] = phi * ratio + (1 - phi)


def _dynamic_threshold(num_images: int, values: Mapping[str, int], features: Mapping[str, bool]) -> None:
    packed, x = _packed(values), _rows(values, "x_ptr", num_images)
    F = _guided(num_images, values) if features["GUIDED"] else _rows(values, "F_ptr", num_images)
    x0 = packed[WORD["p"]] * x + packed[WORD["q"]] * F
    bound = np.quantile(np.abs(x0), float(packed[WORD["threshold_ratio"]]), axis=1)
    bounds = np.clip(bound, 1, packed[WORD["threshold_max"]])
    array_at(values["bound_ptr"], (num_images,), np.float32)[:] = bounds


def _table_row(num_images: int, values: Mapping[str, int], features: Mapping[str, bool]) -> None:
    packed, x = _packed(values), _rows(values, "x_ptr", num_images)
    words = {name: packed[i] for name, i in WORD.items()}
    flags = int(packed.view(np.uint32)[WORD["flags"]])
    total = words["x_weight"] * x
    x0 = x
    if flags & row_layout.CALLS_NETWORK:
        F = _guided(num_images, values) if features["GUIDED"] else _rows(values, "F_ptr", num_images)
        x0 = np.clip(words["p"] * x + words["q"] * F, -words["clip"], words["clip"])
        if words["threshold_ratio"]:
            bound = array_at(values["bound_ptr"], (num_images, 1), np.float32)
            x0 = np.clip(x0, -bound, bound) / bound
        total = total + words["second_weight"] * (F if flags & row_layout.FOLDED else x0) + words["f"] * F
    if features["GENERAL"]:
        for weight, pointer in (("h1", "x0_1_ptr"), ("h2", "x0_2_ptr"), ("h3", "x0_3_ptr"), ("k", "anchor_ptr")):
            if words[weight]:
                total = total + words[weight] * _rows(values, pointer, num_images)
    if features["NOISE"] and words["n"]:
        total = total + words["n"] * _noise(values, packed, num_images)
    keeps = features["GENERAL"] and flags & row_layout.KEEPS_X0
    x0 = np.array(x0)
    _rows(values, "out_ptr", num_images)[:] = total
    if keeps:
        _rows(values, "x0_out_ptr", num_images)[:] = x0
    _scale(values, packed, total)


def _to_uint8(num_images: int, values: Mapping[str, int], features: Mapping[str, bool]) -> None:
    channels, pixels = values["num_channels"], values["num_pixels"]
    x = array_at(values["x_ptr"], (num_images, channels, 1, pixels), np.float32)
    array_at(values["out_ptr"], (num_images, 1, pixels, channels), np.uint8)[:] = reference.to_uint8(x)


KERNELS: Mapping[str, Callable[[int, Mapping[str, int], Mapping[str, bool]], None]] = {
    "philox_normal": _philox_normal,
    "guidance_factor": _guidance_factor,
    "dynamic_threshold": _dynamic_threshold,
    "table_row": _table_row,
    "to_uint8": _to_uint8,
}
