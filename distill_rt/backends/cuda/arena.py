"""Many buffers in one allocation: planned without a GPU, so that the need is known before anything is loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from distill_rt.backends.cuda.driver import ALIGNMENT, Driver
from distill_rt.backends.cuda.programs import DeviceTensor

Shapes = Mapping[str, tuple[tuple[int, ...], Any]]
"""Name -> (shape, dtype)."""


def planned_bytes(shapes: Shapes) -> int:
    """Size of the allocation that holds all of these."""
    return sum(_aligned(math.prod(shape) * np.dtype(dtype).itemsize) for shape, dtype in shapes.values())


class Arena:
    """Named device tensors in one allocation, each aligned to `ALIGNMENT`; freed with the object."""

    def __init__(self, driver: Driver, shapes: Shapes, what: str) -> None:
        self.memory = driver.allocate(planned_bytes(shapes), what)
        self.tensors: dict[str, DeviceTensor] = {}
        offset = 0
        for name, (shape, dtype) in shapes.items():
            tensor = DeviceTensor(address=self.memory.address + offset, shape=shape, dtype=np.dtype(dtype))
            self.tensors[name] = tensor
            offset += _aligned(tensor.num_bytes)

    def __getitem__(self, name: str) -> DeviceTensor:
        return self.tensors[name]


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
