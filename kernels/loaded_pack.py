"""Launches the kernels of a pack through cuda.core: no Triton, no torch.

Not run on a GPU yet. Names and behaviour of cuda.core 1.2 were checked without one: lazy loading of images, and the memory
that its argument handling makes of the arguments (integers become 8-byte addresses, ctypes integers keep their size).
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from distill_rt.core.errors import TargetError, UsageError
from distill_rt.core.optional import require
from distill_rt.kernels.pack import Choice, KernelPack, Parameter

# What the driver says about an image that is not for this device or for this driver (200, 209, 218, 222).
_NEXT_CHOICE = (
    "CUDA_ERROR_INVALID_IMAGE",
    "CUDA_ERROR_NO_BINARY_FOR_GPU",
    "CUDA_ERROR_INVALID_PTX",
    "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
)


class LoadedPack:
    """The kernels of a pack on one device.

    Args:
        pack: what `read_pack` returned.
        device: `cuda.core.Device`, made current by the caller (in every thread that launches).
        names: variants to load; None: all. Loading is slow (the driver may compile), so it happens here and not in `launch`.

    Raises:
        TargetError: no driver, or no image of the pack runs on the device.
    """

    def __init__(self, pack: KernelPack, device: Any, names: Iterable[str] | None = None) -> None:
        require_driver()
        self._core: Any = require("cuda.core", extra="cuda")
        self._pack = pack
        capability = device.compute_capability
        self._names = tuple(pack.body.kernels if names is None else names)
        self.choice, self._kernels = self._load(pack.choices(10 * capability.major + capability.minor))

    @property
    def note(self) -> str:
        """What a user should know about the choice of images; empty if they were compiled for this very device."""
        return self.choice.note

    def launch(self, stream: Any, name: str, grid: tuple[int, int, int], args: Sequence[int]) -> None:
        """Enqueue one kernel.

        Args:
            stream: `cuda.core.Stream`, or a graph builder while capturing.
            name: variant (`KernelPack.find`).
            grid: programs (`PackedKernel.grid`).
            args: addresses and integers in the order of the variant's parameters, hidden ones left out. Integers are
                copied into a captured graph; what shall change between its launches lives behind the addresses.
        """
        packed = self._pack.body.kernels[name]
        config = self._core.LaunchConfig(
            grid=grid, block=(32 * packed.num_warps, 1, 1), shmem_size=packed.images[self.choice.target].shared_bytes
        )
        self._core.launch(stream, config, self._kernels[name], *marshal(packed.parameters, args))

    def _load(self, choices: Sequence[Choice]) -> tuple[Choice, dict[str, Any]]:
        refused = []
        for choice in choices:
            try:
                return choice, {name: self._kernel(name, choice.target) for name in self._names}
            except Exception as error:  # cuda.core's own class is in a private module
                if not str(error).startswith(_NEXT_CHOICE):
                    raise
                refused.append(f"{choice.target}: {str(error).partition(':')[0]}")
        raise TargetError(
            f"the driver takes no image of the kernel pack in {self._pack.directory} ({'; '.join(refused)})",
            code="kernel-pack-refused",
            hint="update the NVIDIA driver (CUDA 12 or later), or compile the engine again on this machine",
        )

    def _kernel(self, name: str, target: str) -> Any:
        packed = self._pack.body.kernels[name]
        make = self._core.ObjectCode.from_ptx if target.startswith("ptx") else self._core.ObjectCode.from_cubin
        kernel = make(self._pack.image(name, target), name=name).get_kernel(packed.images[target].entry)
        # A launch with another number of parameters would read beyond the array.
        sizes = [info.size for info in kernel.arguments_info]
        assert sizes == [parameter.size_bytes for parameter in packed.parameters], (name, target, sizes)
        return kernel


def marshal(parameters: Sequence[Parameter], args: Sequence[int]) -> tuple[Any, ...]:
    """Arguments as cuda.core takes them: addresses as int, integers with their size, 0 for hidden parameters.

    Raises:
        UsageError: another number of arguments, or an integer that its parameter cannot hold.
    """
    visible = [parameter for parameter in parameters if parameter.kind != "hidden"]
    if len(args) != len(visible):
        raise UsageError(f"the kernel takes {len(visible)} arguments, got {len(args)}", code="kernel-argument")
    values: list[Any] = []
    for parameter, value in zip(visible, args, strict=True):
        bits = 8 * parameter.size_bytes
        low, high = (0, 1 << 64) if parameter.kind == "pointer" else (-(1 << (bits - 1)), 1 << (bits - 1))
        if not low <= value < high:
            raise UsageError(f"{parameter.name} must be {low}..{high - 1}, got {value}", code="kernel-argument")
        whole = {4: ctypes.c_int32, 8: ctypes.c_int64}[parameter.size_bytes]
        values.append(int(value) if parameter.kind == "pointer" else whole(value))
    return (*values, *(0 for parameter in parameters if parameter.kind == "hidden"))


def require_driver() -> None:
    """Raise `TargetError` where there is no NVIDIA driver.

    cuda.core 1.2 keeps a lock when its first call finds no driver, and the next call hangs; so this comes first.
    """
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        ctypes.CDLL(name)
    except OSError as error:
        raise TargetError(
            f"no NVIDIA driver: {name} cannot be loaded",
            code="driver-missing",
            hint="install the NVIDIA driver, or compile the bundle for another target",
        ) from error
