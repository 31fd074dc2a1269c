"""One formula for Python floats, numpy arrays and torch tensors, without importing torch.

Noise processes and predictions are evaluated in float64 numpy when a table is compiled and on torch tensors when a
student is trained. Both libraries spell the elementary functions used here alike (``cos``, ``arctan``, ``where``,
``searchsorted``, ...), so a formula asks for the module of its argument and calls that.
"""

from __future__ import annotations

import sys
from typing import Any, TypeAlias

import numpy as np

Values: TypeAlias = Any
"""A Python float, a numpy array or a torch tensor; a result has the kind, dtype and device of the input."""


def array_namespace(value: Values) -> Any:
    """The module whose functions take `value`: torch for a torch tensor, numpy for everything else.

    A tensor can only exist after torch was imported, so looking in ``sys.modules`` never imports it.
    """
    for kind in type(value).__mro__:  # subclasses of Tensor (Parameter, FakeTensor) live in other modules
        if kind.__module__ == "torch":
            return sys.modules["torch"]
    return np


def constant_like(table: np.ndarray[Any, Any], like: Values) -> Values:
    """`table` as an array of the kind, dtype and device of `like`."""
    xp = array_namespace(like)
    return table if xp is np else xp.as_tensor(table, dtype=like.dtype, device=like.device)


def broadcast_to_images(values_B: Values, x: Values) -> Values:
    """Give per-image values of shape (B,) trailing axes so that they broadcast against x of shape (B, ...)."""
    ndim = getattr(values_B, "ndim", 0)
    if ndim == 0 or ndim == x.ndim:
        return values_B
    if ndim != 1:
        raise ValueError(f"expected a scalar or one value per image, got an array of {ndim} dimensions")
    return values_B.reshape(-1, *([1] * (x.ndim - 1)))
