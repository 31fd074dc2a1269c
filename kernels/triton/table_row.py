"""One row of the step table in one pass over memory: guidance, x0, clip, history, noise, next state, next network input.

The arithmetic is `distill_rt.kernels.reference.apply_row` after `combine_guidance`, term by term in that order, in float32.
Two forms exist: the fast one runs rows that fold (``a*x + b*F + n*z``), the general one runs every row, which parts
of it being decided by the row's words in device memory (`distill_rt.kernels.triton.row_layout`).

Legend: B images, N elements of one image.
"""

# Parameters of kernels are values on the device and have no Python types.
# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false

from __future__ import annotations

import triton
import triton.language as tl

from distill_rt.kernels.triton import row_layout
from distill_rt.kernels.triton.guidance import network_output
from distill_rt.kernels.triton.noise import unit_noise

_X_WEIGHT = tl.constexpr(row_layout.WORD["x_weight"])
_SECOND_WEIGHT = tl.constexpr(row_layout.WORD["second_weight"])
_P = tl.constexpr(row_layout.WORD["p"])
_Q = tl.constexpr(row_layout.WORD["q"])
_CLIP = tl.constexpr(row_layout.WORD["clip"])
_THRESHOLD_RATIO = tl.constexpr(row_layout.WORD["threshold_ratio"])
_F = tl.constexpr(row_layout.WORD["f"])
_H1 = tl.constexpr(row_layout.WORD["h1"])
_H2 = tl.constexpr(row_layout.WORD["h2"])
_H3 = tl.constexpr(row_layout.WORD["h3"])
_K = tl.constexpr(row_layout.WORD["k"])
_N = tl.constexpr(row_layout.WORD["n"])
_NEXT_C_IN = tl.constexpr(row_layout.WORD["next_c_in"])
_STREAM = tl.constexpr(row_layout.WORD["stream"])
_FLAGS = tl.constexpr(row_layout.WORD["flags"])
_CALLS_NETWORK = tl.constexpr(row_layout.CALLS_NETWORK)
_FOLDED = tl.constexpr(row_layout.FOLDED)
_KEEPS_X0 = tl.constexpr(row_layout.KEEPS_X0)


@triton.jit
def table_row(
    x_ptr, F_ptr, F_u_ptr, x0_1_ptr, x0_2_ptr, x0_3_ptr, anchor_ptr,
    out_ptr, x0_out_ptr, scaled_ptr,
    row_ptr, w_ptr, factor_ptr, bound_ptr, seeds_ptr,
    num, state_stride, F_stride, scaled_stride, copy_stride, num_copies,
    GUIDED: tl.constexpr, GENERAL: tl.constexpr, NOISE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row. Grid (ceil(N / BLOCK), B).

    Args:
        x_ptr: state, (B, N), images state_stride elements apart; so are x0_*, anchor, out and x0_out. One dtype.
        F_ptr, F_u_ptr: network output with and (GUIDED) without the condition, (B, N), images F_stride apart.
        x0_1_ptr, x0_2_ptr, x0_3_ptr, anchor_ptr: (GENERAL) read if the row weights them.
        out_ptr: next state; may be x_ptr.
        x0_out_ptr: (GENERAL) written if the row keeps x0; may be the oldest history buffer.
        scaled_ptr: next_c_in * next state in the network's dtype, images scaled_stride apart, num_copies times
            copy_stride apart (two for a network that runs both halves of guidance in one batch).
        row_ptr: the packed row, float32 (16,).
        w_ptr, factor_ptr: (GUIDED) float32 (B,): guidance scale; 1, or what `guidance_factor` wrote.
        bound_ptr: (GENERAL) float32 (B,) from `dynamic_threshold`, read if the row has a threshold.
        seeds_ptr: (NOISE) int64 (B,), the bits of the images' seeds.
        num: N, 32-bit; num_copies likewise; strides are 64-bit.

    A pointer that the form or the row does not use is neither read nor written; pass any address. Other overlaps of
    outputs with anything are not allowed.
    """
    image = tl.program_id(1).to(tl.int64)
    first = tl.program_id(0) * BLOCK
    offset = first + tl.arange(0, BLOCK)
    inside = offset < num
    state = image * state_stride + offset

    x = tl.load(x_ptr + state, mask=inside, other=0.0).to(tl.float32)
    total = tl.load(row_ptr + _X_WEIGHT) * x
    x0 = x  # only a value for rows that have none
    flags = tl.load(row_ptr + _FLAGS).to(tl.int32, bitcast=True)
    if GENERAL:
        if (flags & _CALLS_NETWORK) != 0:
            F = network_output(F_ptr, F_u_ptr, w_ptr, factor_ptr, image, image * F_stride + offset, inside, GUIDED)
            x0 = _predict_x0(x, F, row_ptr, bound_ptr + image)
            second_weight = tl.load(row_ptr + _SECOND_WEIGHT)
            total = total + second_weight * tl.where((flags & _FOLDED) != 0, F, x0)
            total = _add_value(total, F, row_ptr + _F)
        total = _add_buffer(total, x0_1_ptr + state, row_ptr + _H1, inside)
        total = _add_buffer(total, x0_2_ptr + state, row_ptr + _H2, inside)
        total = _add_buffer(total, x0_3_ptr + state, row_ptr + _H3, inside)
        total = _add_buffer(total, anchor_ptr + state, row_ptr + _K, inside)
    else:
        F = network_output(F_ptr, F_u_ptr, w_ptr, factor_ptr, image, image * F_stride + offset, inside, GUIDED)
        total = total + tl.load(row_ptr + _SECOND_WEIGHT) * F
    if NOISE:
        n = tl.load(row_ptr + _N)
        if n != 0.0:
            stream = tl.load(row_ptr + _STREAM).to(tl.uint32, bitcast=True)
            z = unit_noise(tl.load(seeds_ptr + image), stream, tl.program_id(0) * (BLOCK // 4), BLOCK)
            total = total + n * z

    # Outputs last: whatever this program reads has been read, so they may be the buffers of inputs.
    tl.debug_barrier()
    tl.store(out_ptr + state, total, mask=inside)
    if GENERAL:  # noqa: SIM102 - decided when compiling, the inner one when running
        if (flags & _KEEPS_X0) != 0:
            tl.store(x0_out_ptr + state, x0, mask=inside)
    scaled = tl.load(row_ptr + _NEXT_C_IN) * total
    for copy in range(num_copies):
        tl.store(scaled_ptr + copy * copy_stride + image * scaled_stride + offset, scaled, mask=inside)


@triton.jit
def _predict_x0(x, F, row_ptr, bound_ptr):
    clip = tl.load(row_ptr + _CLIP)
    x0 = clamp(tl.load(row_ptr + _P) * x + tl.load(row_ptr + _Q) * F, clip)
    if tl.load(row_ptr + _THRESHOLD_RATIO) != 0.0:
        bound = tl.load(bound_ptr)
        x0 = tl.div_rn(clamp(x0, bound), tl.full(x0.shape, 1.0, tl.float32) * bound)
    return x0


@triton.jit
def clamp(x, bound):
    """x in [-bound, bound]; NaN stays NaN, as in numpy.clip."""
    return tl.where(x < -bound, -bound, tl.where(x > bound, bound, x))


@triton.jit
def _add_value(total, value, weight_ptr):
    weight = tl.load(weight_ptr)
    if weight != 0.0:
        total = total + weight * value
    return total


@triton.jit
def _add_buffer(total, pointers, weight_ptr, inside):
    weight = tl.load(weight_ptr)
    if weight != 0.0:
        total = total + weight * tl.load(pointers, mask=inside, other=0.0).to(tl.float32)
    return total
