"""The kernels on torch tensors, through Triton's own launcher: for tests (TRITON_INTERPRET=1, CPU) and benchmarks (CUDA).

A runtime launches a kernel pack instead (`distill_rt.kernels.pack`). Torch is not imported here: tensors are used by their
methods. Every launch passes ``enable_fp_fusion=False``, without which the bits are not the reference's.

Tensors have shape (B, ...), each image contiguous in itself; images may be any distance apart, but state tensors of one
call share one distance, and so do F and F_u. Launches are asynchronous on the current stream and check nothing that would
need the device.
"""

from __future__ import annotations

import math
from typing import Any

from distill_rt.core.errors import UsageError
from distill_rt.kernels.triton.dynamic_threshold import dynamic_threshold as _dynamic_threshold
from distill_rt.kernels.triton.guidance import guidance_factor as _guidance_factor
from distill_rt.kernels.triton.philox_normal import philox_normal as _philox_normal
from distill_rt.kernels.triton.table_row import table_row as _table_row
from distill_rt.kernels.triton.to_uint8 import to_uint8 as _to_uint8
from distill_rt.kernels.triton.variants import (
    IMAGE_BLOCK,
    IMAGE_MAX_REGISTERS,
    IMAGE_WARPS,
    PIXEL_BLOCK,
    ROW_BLOCK,
    ROW_WARPS,
    THRESHOLD_BLOCK,
)

Tensor = Any


def table_row(
    x: Tensor,
    F: Tensor | None,
    row: Tensor,
    out: Tensor,
    *,
    F_u: Tensor | None = None,
    w: Tensor | None = None,
    factor: Tensor | None = None,
    bound: Tensor | None = None,
    seeds: Tensor | None = None,
    history: tuple[Tensor | None, ...] = (),
    anchor: Tensor | None = None,
    x0_out: Tensor | None = None,
    scaled: Tensor | None = None,
    num_copies: int = 1,
    general: bool = True,
) -> None:
    """One row of a step table, see `distill_rt.kernels.triton.table_row`.

    Args:
        x, out, history, anchor, x0_out: the state's dtype; out may be x, x0_out the oldest history buffer.
        F: raw output (with the condition); None only for a row that calls no network.
        row: packed row, float32 (16,) on the device.
        F_u, w, factor: given together for guidance: output without the condition, scale (B,), factor (B,) of ones or from
            `guidance_factor`.
        bound: float32 (B,) from `dynamic_threshold`, for rows with a threshold.
        seeds: int64 (B,), for rows that draw noise.
        scaled: next network input, (num_copies * B, ...).
        general: False runs the fast form, for rows that `row_layout.is_fast`.
    """
    if (F_u is None) != (w is None) or (F_u is None) != (factor is None):
        raise UsageError("guidance needs F_u, w and factor together", code="kernel-argument")
    if not general and (F is None or x0_out is not None or any(h is not None for h in history) or anchor is not None):
        raise UsageError("the fast form has no history, anchor or x0 and always reads F", code="kernel-argument")
    past = [*history, None, None, None][:3]
    num = _num_elements(x)
    state_stride = _image_stride("state", x, out, x0_out, anchor, *past)
    F_stride = _image_stride("F", F, F_u)
    scaled_stride = _image_stride("scaled", scaled)
    num_images = x.shape[0]
    _table_row[(math.ceil(num / ROW_BLOCK), num_images)](
        x, _or(F, x), _or(F_u, x), *(_or(h, x) for h in past), _or(anchor, x),
        out, _or(x0_out, x), _or(scaled, x),
        row, _or(w, row), _or(factor, row), _or(bound, row), _or(seeds, row),
        num, state_stride, F_stride, scaled_stride, num_images * scaled_stride, 0 if scaled is None else num_copies,
        GUIDED=F_u is not None, GENERAL=general, NOISE=seeds is not None, BLOCK=ROW_BLOCK,
        num_warps=ROW_WARPS, enable_fp_fusion=False,
    )  # fmt: skip


def philox_normal(
    out: Tensor, row: Tensor, seeds: Tensor, *, scaled: Tensor | None = None, num_copies: int = 1
) -> None:
    """Initial states (B, ...) from seeds int64 (B,), see `distill_rt.kernels.triton.philox_normal`."""
    num, num_images = _num_elements(out), out.shape[0]
    scaled_stride = _image_stride("scaled", scaled)
    _philox_normal[(math.ceil(num / ROW_BLOCK), num_images)](
        out, _or(scaled, out), row, seeds,
        num, _image_stride("out", out), scaled_stride, num_images * scaled_stride, 0 if scaled is None else num_copies,
        BLOCK=ROW_BLOCK, num_warps=ROW_WARPS, enable_fp_fusion=False,
    )  # fmt: skip


def guidance_factor(F: Tensor, F_u: Tensor, w: Tensor, phi: Tensor, factor: Tensor) -> None:
    """Factor (B,) of rescaled guidance, see `distill_rt.kernels.triton.guidance`."""
    _guidance_factor[(F.shape[0],)](
        F, F_u, w, phi, factor, _num_elements(F), _image_stride("F", F, F_u),
        BLOCK=IMAGE_BLOCK, num_warps=IMAGE_WARPS, maxnreg=IMAGE_MAX_REGISTERS, enable_fp_fusion=False,
    )  # fmt: skip


def dynamic_threshold(
    x: Tensor,
    F: Tensor,
    row: Tensor,
    bound: Tensor,
    *,
    F_u: Tensor | None = None,
    w: Tensor | None = None,
    factor: Tensor | None = None,
) -> None:
    """Bound (B,) of a dynamic threshold, see `distill_rt.kernels.triton.dynamic_threshold`."""
    _dynamic_threshold[(x.shape[0],)](
        x, F, _or(F_u, F), row, _or(w, row), _or(factor, row), bound,
        _num_elements(x), _image_stride("state", x), _image_stride("F", F, F_u),
        GUIDED=F_u is not None, BLOCK=THRESHOLD_BLOCK,
        num_warps=IMAGE_WARPS, maxnreg=IMAGE_MAX_REGISTERS, enable_fp_fusion=False,
    )  # fmt: skip


def to_uint8(x_BCHW: Tensor, out_BHWC: Tensor) -> None:
    """Images in [-1, 1] to bytes, see `distill_rt.kernels.triton.to_uint8`."""
    num_images, num_channels, height, width = x_BCHW.shape
    num = num_channels * height * width
    if not out_BHWC.is_contiguous() or tuple(out_BHWC.shape) != (num_images, height, width, num_channels):
        raise UsageError("out must be contiguous and of shape (B, H, W, C)", code="kernel-layout")
    _to_uint8[(math.ceil(num / PIXEL_BLOCK), num_images)](
        x_BCHW, out_BHWC, num, height * width, num_channels, _image_stride("x", x_BCHW),
        BLOCK=PIXEL_BLOCK, num_warps=ROW_WARPS, enable_fp_fusion=False,
    )  # fmt: skip


def _or(tensor: Tensor | None, other: Tensor) -> Tensor:
    """A pointer that is not read still needs an address."""
    return other if tensor is None else tensor


def _num_elements(tensor: Tensor) -> int:
    return math.prod(tensor.shape[1:])


def _image_stride(name: str, *tensors: Tensor | None) -> int:
    """Elements from one image to the next, the same for all `tensors` that are given; 0 if none is."""
    given = [tensor for tensor in tensors if tensor is not None]
    for tensor in given:
        if not tensor[0].is_contiguous():
            raise UsageError(f"{name}: every image must be contiguous in itself", code="kernel-layout")
    strides = {int(tensor.stride(0)) for tensor in given if tensor.shape[0] > 1}
    if len(strides) > 1:
        raise UsageError(
            f"{name}: images are {sorted(strides)} elements apart, must be one number", code="kernel-layout"
        )
    return strides.pop() if strides else (_num_elements(given[0]) if given else 0)
