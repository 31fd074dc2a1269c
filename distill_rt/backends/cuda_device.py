"""NVIDIA GPUs of this machine, asked from the driver itself: no CUDA package is needed to know that there is none.

`ctypes` on the driver library and five of its functions. Nothing is allocated and no context is made.
"""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

DRIVER_LIBRARIES = ("nvcuda.dll",) if sys.platform == "win32" else ("libcuda.so.1", "libcuda.so")
COMPUTE_CAPABILITY_MAJOR, COMPUTE_CAPABILITY_MINOR = 75, 76
"""CUdevice_attribute, CUDA driver API reference, section "Data types used by CUDA driver"."""
NAME_BYTES = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class CudaDevice:
    """One GPU: its name and compute capability, 89 for 8.9."""

    index: int
    name: str
    capability: int

    def __str__(self) -> str:
        return f"{self.name} (sm{self.capability})"


def cuda_devices() -> tuple[tuple[CudaDevice, ...], str]:
    """The GPUs, in the driver's order, and why there are none.

    Returns:
        Devices and an empty string, or no devices and the reason in one line.
    """
    driver = _driver()
    if driver is None:
        return (), f"no NVIDIA driver ({DRIVER_LIBRARIES[0]} is not there)"
    code = int(driver.cuInit(0))
    if code:
        return (), f"the NVIDIA driver does not start (cuInit answered {code})"
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or not count.value:
        return (), "the NVIDIA driver lists no GPU"
    return tuple(_device(driver, index) for index in range(count.value)), ""


def _driver() -> ctypes.CDLL | None:
    for name in DRIVER_LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _device(driver: ctypes.CDLL, index: int) -> CudaDevice:
    handle, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(NAME_BYTES)
    driver.cuDeviceGet(ctypes.byref(handle), index)
    driver.cuDeviceGetName(name, NAME_BYTES, handle)
    driver.cuDeviceGetAttribute(ctypes.byref(major), COMPUTE_CAPABILITY_MAJOR, handle)
    driver.cuDeviceGetAttribute(ctypes.byref(minor), COMPUTE_CAPABILITY_MINOR, handle)
    return CudaDevice(index=index, name=name.value.decode(errors="replace"), capability=10 * major.value + minor.value)
