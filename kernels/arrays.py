"""Checks of what a caller hands to a kernel, with errors that name the argument."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from distill_rt.core.errors import UsageError


def input_array(name: str, array: Any, shape: tuple[int, ...] | None = None) -> NDArray[np.float32]:
    """`array` as C-contiguous float32; copied if it is strided, refused if its dtype or shape is another.

    Raises:
        UsageError: code ``kernel-dtype`` or ``kernel-shape``.
    """
    _check(name, array, np.float32, shape)
    contiguous: NDArray[np.float32] = np.ascontiguousarray(array)
    return contiguous


def output_array(name: str, array: Any, shape: tuple[int, ...], dtype: DTypeLike = np.float32) -> NDArray[Any]:
    """`array` if a kernel can write into it, a new one if it is None.

    Raises:
        UsageError: code ``kernel-dtype``, ``kernel-shape`` or ``kernel-layout`` (strided or read-only).
    """
    if array is None:
        return np.empty(shape, dtype)
    _check(name, array, dtype, shape)
    if not (array.flags.c_contiguous and array.flags.writeable):
        raise UsageError(
            f"{name} must be a writeable C-contiguous array",
            code="kernel-layout",
            hint="allocate it with numpy.empty, or leave it out",
        )
    out: NDArray[Any] = array
    return out


def _check(name: str, array: Any, dtype: DTypeLike, shape: tuple[int, ...] | None) -> None:
    wanted = np.dtype(dtype)
    if not isinstance(array, np.ndarray) or array.dtype != wanted:
        got = array.dtype if isinstance(array, np.ndarray) else type(array).__name__
        raise UsageError(
            f"{name} must be a NumPy array of {wanted}, got {got}",
            code="kernel-dtype",
            hint=f"convert it with numpy.asarray({name}, numpy.{wanted})",
        )
    if shape is not None and array.shape != shape:
        raise UsageError(f"{name} must have shape {shape}, got {array.shape}", code="kernel-shape")
