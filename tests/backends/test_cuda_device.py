"""GPUs as the driver lists them; the driver here is a stand-in with its five functions."""

from __future__ import annotations

import ctypes
from typing import Any

import pytest

from distill_rt.backends import cuda_device
from distill_rt.backends.cuda_device import cuda_devices


class Driver:
    """What `ctypes` sees of a driver with some GPUs: (name, major, minor)."""

    def __init__(self, *gpus: tuple[str, int, int], init: int = 0) -> None:
        self.gpus, self.init = gpus, init

    def cuInit(self, flags: int) -> int:
        return self.init

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = len(self.gpus)
        return 0

    def cuDeviceGet(self, handle: Any, index: int) -> int:
        handle._obj.value = index
        return 0

    def cuDeviceGetName(self, name: Any, size: int, handle: ctypes.c_int) -> int:
        name.value = self.gpus[handle.value][0].encode()
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: ctypes.c_int) -> int:
        value._obj.value = self.gpus[handle.value][{75: 1, 76: 2}[attribute]]
        return 0


@pytest.mark.parametrize(
    ("driver", "reason"),
    [
        (None, "no NVIDIA driver"),
        (Driver(init=999), "cuInit answered 999"),
        (Driver(), "lists no GPU"),
    ],
)
def test_no_gpu_has_a_reason(driver: Driver | None, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "_driver", lambda: driver)
    devices, why = cuda_devices()
    assert devices == ()
    assert reason in why


def test_gpus_by_name_and_capability(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "_driver", lambda: Driver(("NVIDIA H200", 9, 0), ("NVIDIA RTX 5090", 12, 0)))
    devices, why = cuda_devices()
    assert why == ""
    assert [str(device) for device in devices] == ["NVIDIA H200 (sm90)", "NVIDIA RTX 5090 (sm120)"]


def test_a_machine_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "DRIVER_LIBRARIES", ("libnothing-of-that-name.so",))
    assert cuda_devices() == ((), "no NVIDIA driver (libnothing-of-that-name.so is not there)")
