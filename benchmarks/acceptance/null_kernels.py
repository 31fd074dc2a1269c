"""Triton kernels that do nothing: what any launch costs."""

# Parameters of kernels are values on the device and have no Python types.
# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false

from __future__ import annotations

import triton


@triton.jit
def null():
    """No arguments, one program."""


@triton.jit
def null_like_table_row(
    x_ptr, F_ptr, F_u_ptr, x0_1_ptr, x0_2_ptr, x0_3_ptr, anchor_ptr, out_ptr, x0_out_ptr, scaled_ptr,
    row_ptr, w_ptr, factor_ptr, bound_ptr, seeds_ptr,
    num, state_stride, F_stride, scaled_stride, copy_stride, num_copies,
):  # fmt: skip
    """The arguments of `table_row`, for the same grid."""
