"""The public operations: the native module where it is built, the NumPy reference where it is not, equal bits either way.

``implementation`` is for tests and benchmarks: None takes the fastest one that can do the job. Two things have no native
form and run in NumPy: rows with a dynamic threshold (a quantile per image) and rescaled guidance.

``num_threads=None`` uses one thread per so many elements that starting it pays off, never more than the process may
use (processor affinity, and ``OMP_NUM_THREADS`` if set). The bits do not depend on it.

Legend: B images, C channels, H x W pixels.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.errors import TargetError, UsageError
from distill_rt.core.noise import INITIAL_STREAM, check_draw, seed_array
from distill_rt.core.table import Row
from distill_rt.kernels import reference
from distill_rt.kernels.arrays import input_array, output_array

_native: Any
try:
    # Not `from distill_rt.kernels import _native`, which says ImportError for a missing module as for a broken one.
    _native = importlib.import_module("distill_rt.kernels._native")
except ModuleNotFoundError:  # a wheel built with DISTILL_RT_PURE_PYTHON=1; a broken module still fails loudly
    _native = None

Implementation = Literal["native", "reference"]
Float32 = NDArray[np.float32]

# Elements per thread below which starting a thread (tens of microseconds) costs more than it saves.
_NOISE_GRAIN = 1 << 16  # about 2 ns per element
_STREAMING_GRAIN = 1 << 19  # about 0.3 ns per element, mostly memory traffic


def available_implementations() -> tuple[Implementation, ...]:
    """Implementations on this machine, fastest first."""
    return ("reference",) if _native is None else ("native", "reference")


def unit_noise(
    seeds: Sequence[int] | NDArray[Any],
    shape: tuple[int, ...],
    stream: int = INITIAL_STREAM,
    *,
    out: Float32 | None = None,
    num_threads: int | None = None,
    implementation: Implementation | None = None,
) -> Float32:
    """`distill_rt.core.noise.unit_noise`, faster: float32 (B, *shape), shape of ONE image, written to `out` if given."""
    seeds_B = seed_array(seeds)
    num_elements = math.prod(shape)
    check_draw(num_elements, stream)
    out = output_array("out", out, (len(seeds_B), *shape))
    if not _use_native(implementation):
        np.copyto(out, reference.unit_noise(seeds_B, shape, stream))
    elif out.size:
        _native.unit_noise(np.ascontiguousarray(seeds_B), stream, out, _threads(num_threads, out.size, _NOISE_GRAIN))
    return out


def apply_row(
    row: Row,
    x: Float32,
    F: Float32 | None = None,
    z: Float32 | None = None,
    *,
    history: Sequence[Float32] = (),
    anchor: Float32 | None = None,
    next_c_in: float | None = None,
    out: Float32 | None = None,
    x0_out: Float32 | None = None,
    scaled_out: Float32 | None = None,
    num_threads: int | None = None,
    implementation: Implementation | None = None,
) -> Float32:
    """x_next of one row of a step table: the bits of ``run_table(..., dtype=float32)``.

    Args:
        row: the coefficients; what it weights must be given, what it cannot use (F, z) must not.
        x: state before the row, any shape.
        F: raw network output with guidance applied; None for a row without a network.
        z: unit noise of the row's stream; None for a row with n = 0.
        history: earlier predictions x0, newest first; may hold more than the row uses.
        anchor: the state saved by the last row flagged `set_anchor`; may be given though unused.
        next_c_in, scaled_out: with both, also ``scaled_out = next_c_in * x_next``, the input of the next network call.
        out: x_next, may be x itself; allocated if None.
        x0_out: also receives the prediction x0, for the history; may be the oldest history buffer.

    Raises:
        UsageError: a missing or needless argument, or an array of wrong dtype, shape or layout.
        ValueError: (native) an output shares a part of another array's memory; the same array is fine for an input.
    """
    x = input_array("x", x)
    F = _needed("F", F, row.calls_network, x.shape)
    z = _needed("z", z, row.n != 0.0, x.shape)
    terms: list[tuple[float, Float32]] = []
    if row.f and F is not None and not row.is_affine:  # folded into b otherwise
        terms.append((row.f, F))
    for i, weight in enumerate((row.h1, row.h2, row.h3)):
        if weight:
            past = history[i] if i < len(history) else None
            terms.append((weight, input_array(f"history[{i}]", past, x.shape)))
    if row.k:
        terms.append((row.k, input_array("anchor", anchor, x.shape)))
    if z is not None:
        terms.append((row.n, z))
    if (scaled_out is None) != (next_c_in is None):
        raise UsageError("next_c_in and scaled_out belong together: give both or neither", code="kernel-argument")
    if x0_out is not None and F is None:
        raise UsageError("a row without a network has no x0: leave x0_out out", code="kernel-argument")
    out = output_array("out", out, x.shape)
    x0_out = None if x0_out is None else output_array("x0_out", x0_out, x.shape)
    scaled_out = None if scaled_out is None else output_array("scaled_out", scaled_out, x.shape)

    if not _use_native(implementation, "dynamic threshold" if row.threshold_ratio is not None else None):
        x_next, x0 = reference.apply_row(row, x, F, z, history, anchor, wants_x0=x0_out is not None)
        if scaled_out is not None:
            np.copyto(scaled_out, np.float32(next_c_in) * x_next)
        if x0_out is not None:
            assert x0 is not None
            np.copyto(x0_out, x0)
        np.copyto(out, x_next)
    elif out.size:
        folded = F is not None and row.is_affine
        weights = row.folded()[:2] if folded else (row.r, row.g)
        threads = _threads(num_threads, out.size, _STREAMING_GRAIN)
        _native.table_row(
            x, F, (row.p, row.q), row.clip or 0.0, folded, weights, terms, next_c_in or 0.0, out, x0_out, scaled_out,
            threads,
        )  # fmt: skip
    return out


def combine_guidance(
    F_u: Float32,
    F_c: Float32,
    w: float | NDArray[Any],
    *,
    rescale: float = 0.0,
    out: Float32 | None = None,
    num_threads: int | None = None,
    implementation: Implementation | None = None,
) -> Float32:
    """Guided output ``F_u + w * (F_c - F_u)``, see `distill_rt.core.guidance.combine_guidance`.

    Args:
        F_u, F_c: outputs without and with the condition, shape (B, ...).
        w: guidance scale, a number or shape (B,).
        rescale: phi in [0, 1] of Lin et al. 2023; 0 is off.
        out: may be F_u or F_c; allocated if None.
    """
    F_u = input_array("F_u", F_u)
    F_c = input_array("F_c", F_c, F_u.shape)
    out = output_array("out", out, F_u.shape)
    w_B = np.ascontiguousarray(np.asarray(w, np.float32).reshape(-1))
    if w_B.size != 1 and (F_u.ndim == 0 or w_B.size != len(F_u)):
        raise UsageError(
            f"w must be a number or one per image, got {w_B.size} values for shape {F_u.shape}", code="kernel-shape"
        )
    if not _use_native(implementation, "rescaled guidance" if rescale else None):
        np.copyto(out, reference.combine_guidance(F_u, F_c, w_B, rescale=rescale))
    elif out.size:
        _native.combine_guidance(F_u, F_c, w_B, out, _threads(num_threads, out.size, _STREAMING_GRAIN))
    return out


def to_uint8(
    x_BCHW: Float32,
    *,
    out: NDArray[np.uint8] | None = None,
    num_threads: int | None = None,
    implementation: Implementation | None = None,
) -> NDArray[np.uint8]:
    """Images in [-1, 1] as bytes (B, H, W, C): (x + 1) * 127.5 rounded half to even and clamped to 0..255, NaN -> 0."""
    x_BCHW = input_array("x_BCHW", x_BCHW)
    if x_BCHW.ndim != 4:
        raise UsageError(f"x_BCHW must have four dimensions, got shape {x_BCHW.shape}", code="kernel-shape")
    B, C, H, W = x_BCHW.shape
    out = output_array("out", out, (B, H, W, C), np.uint8)
    if not _use_native(implementation):
        np.copyto(out, reference.to_uint8(x_BCHW))
    elif out.size:
        _native.to_uint8(x_BCHW, out, _threads(num_threads, out.size, _STREAMING_GRAIN))
    return out


def _needed(name: str, array: Any, needed: bool, shape: tuple[int, ...]) -> Float32 | None:
    if needed:
        return input_array(name, array, shape)
    if array is not None:
        raise UsageError(f"this row does not use {name}: leave it out", code="kernel-argument")
    return None


def _use_native(implementation: Implementation | None, reference_only: str | None = None) -> bool:
    if implementation is None:
        return _native is not None and reference_only is None
    if implementation == "reference":
        return False
    if implementation != "native":
        raise UsageError(
            f"implementation must be 'native', 'reference' or None, got {implementation!r}", code="kernel-argument"
        )
    if reference_only is not None:
        raise UsageError(
            f"{reference_only} has no native kernel", code="kernel-argument", hint="leave implementation out"
        )
    if _native is None:
        raise TargetError(
            "the native kernels are not part of this installation",
            code="native-missing",
            hint="reinstall without DISTILL_RT_PURE_PYTHON",
        )
    return True


def _threads(requested: int | None, num_elements: int, grain: int) -> int:
    if requested is not None:
        if requested < 1:
            raise UsageError(f"num_threads must be at least 1, got {requested}", code="kernel-argument")
        return requested
    useful = num_elements // grain
    return 1 if useful < 2 else min(useful, _usable_processors())


def _usable_processors() -> int:
    num = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(num, int(limit)) if limit.isdecimal() and int(limit) > 0 else num
