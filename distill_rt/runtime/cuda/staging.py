"""What a request brings: written into pinned memory by the host, copied to where kernels and networks read it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.cuda.driver import ALIGNMENT, Driver

Array = NDArray[Any]


class Staging:
    """Named pinned arrays, each with the addresses on the GPU that it is copied to.

    The copies belong to the captured request: a request writes the arrays and launches.
    """

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self._pinned: list[Any] = []
        self._arrays: dict[str, Array] = {}
        self._targets: dict[str, list[int]] = {}

    def add(self, name: str, shape: tuple[int, ...], dtype: Any, targets: Sequence[int]) -> None:
        """A new array, zero at first, and where it goes."""
        num_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        pinned = self._driver.allocate_pinned(-(-num_bytes // ALIGNMENT) * ALIGNMENT)
        self._pinned.append(pinned)
        self._arrays[name] = pinned.array[:num_bytes].view(dtype).reshape(shape)
        self._targets[name] = list(targets)

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __getitem__(self, name: str) -> Array:
        return self._arrays[name]

    def enqueue(self, stream: int, leave_out: Sequence[str] = ()) -> None:
        """Put the copies on a stream."""
        for name, array in self._arrays.items():
            if name not in leave_out:
                for address in self._targets[name]:
                    self._driver.to_device(address, array.ctypes.data, array.nbytes, stream)
