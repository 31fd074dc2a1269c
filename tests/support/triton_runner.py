"""Runs our Triton kernels on given arrays: in Triton's interpreter on the CPU, or compiled on an NVIDIA GPU.

The interpreter is chosen by TRITON_INTERPRET=1 before triton is first imported, and it changes triton for the whole process;
hence a process of its own for either. Arrays travel as float32 with the name of the dtype that they have in the kernel.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from distill_rt.core.errors import DistillError

Device = Literal["cpu", "cuda"]
TORCH_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16", "i64": "int64", "u8": "uint8"}


@dataclass(frozen=True, kw_only=True)
class Given:
    """A tensor argument: values (B, ...), its dtype in the kernel, and unused elements between images."""

    values: np.ndarray
    dtype: str = "fp32"
    gap: int = 0


def call(device: Device, name: str, tensors: dict[str, Any], options: dict[str, Any]) -> dict[str, np.ndarray]:
    """Run one function of `distill_rt.kernels.triton.on_tensors`; every tensor comes back as it is afterwards.

    16-bit floats come back as float32 (exactly), words between images are checked to be untouched. Tensors of one list
    come back as name0, name1, ...
    """
    import torch

    on_tensors = importlib.import_module("distill_rt.kernels.triton.on_tensors")
    memory: dict[str, tuple[Any, Any]] = {}

    def tensor(key: str, given: Given | None) -> Any:
        if given is None:
            return None
        dtype = getattr(torch, TORCH_DTYPES[given.dtype])
        values = torch.from_numpy(np.ascontiguousarray(given.values)).to(device, dtype)
        if given.gap == 0:
            memory[key] = (values, None)
            return values
        num = values[0].numel()
        storage = torch.full((len(values), num + given.gap), 77, dtype=dtype, device=device)
        view = storage[:, :num].unflatten(1, values.shape[1:])
        view.copy_(values)
        memory[key] = (view, storage[:, num:])
        return view

    arguments = {
        key: tuple(tensor(f"{key}{i}", one) for i, one in enumerate(given))
        if isinstance(given, list)
        else tensor(key, given)
        for key, given in tensors.items()
    }
    try:
        getattr(on_tensors, name)(**arguments, **options)
    except DistillError as error:  # has keyword-only arguments, which do not travel between processes
        raise RuntimeError(f"{error.code}: {error}") from error
    for key, (_, between) in memory.items():
        assert between is None or bool((between == 77).all()), f"{key}: words between images were written"
    return {
        key: (value.float() if value.is_floating_point() else value).contiguous().cpu().numpy()
        for key, (value, _) in memory.items()
    }


def _start(device: Device, path: list[str]) -> None:
    os.environ["TRITON_INTERPRET"] = "1" if device == "cpu" else "0"
    sys.path[:] = path


class Runner:
    """Calls `call` in the other process."""

    def __init__(self, device: Device, executor: ProcessPoolExecutor) -> None:
        self._device = device
        self._executor = executor

    def __call__(self, name: str, tensors: dict[str, Any], **options: Any) -> dict[str, np.ndarray]:
        return self._executor.submit(call, self._device, name, tensors, options).result(timeout=120)


@contextmanager
def runner(device: Device) -> Iterator[Runner]:
    """The process, started by the first call and ended with the block."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_start, initargs=(device, sys.path)) as executor:
        yield Runner(device, executor)
