"""Guidance inside of a kernel, and the kernel that finds the factor of rescaled guidance.

`network_output` is `distill_rt.core.guidance.combine_guidance` on the elements of one block. Guidance that the network
takes as an input (embedded) needs nothing here: it is a launch without guidance.

Rescaling (Lin et al. 2023, arXiv 2305.08891, equations 15-16) needs the standard deviation of a whole image before the first
element can be written, so it is two launches: `guidance_factor` reads both outputs and writes one number per image, and
every guided kernel multiplies by that number, which is exactly 1 where rescaling is off.

Legend: B images, N elements of one image; F_u and F output without and with the condition.
"""

# Parameters of kernels are values on the device and have no Python types.
# mypy: disallow-untyped-defs=false, disallow-incomplete-defs=false

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def network_output(F_ptr, F_u_ptr, w_ptr, factor_ptr, image, offset, inside, GUIDED: tl.constexpr):
    """Raw network output with guidance applied, float32, at `offset` (elements) of image `image`."""
    F = tl.load(F_ptr + offset, mask=inside, other=0.0).to(tl.float32)
    if GUIDED:
        F_u = tl.load(F_u_ptr + offset, mask=inside, other=0.0).to(tl.float32)
        F = (F_u + tl.load(w_ptr + image) * (F - F_u)) * tl.load(factor_ptr + image)
    return F


@triton.jit
def guidance_factor(F_ptr, F_u_ptr, w_ptr, phi_ptr, factor_ptr, num, F_stride, BLOCK: tl.constexpr):
    """factor[b] = phi[b] * std(F) / std(guided F) + (1 - phi[b]); exactly 1 where phi[b] is 0. Grid (B,).

    Two passes over the image, mean and then squared deviations, so the result is as good as float32 allows; it differs
    from NumPy's in the order of the sums.

    Args:
        F_ptr, F_u_ptr: (B, N) with and without the condition, images F_stride elements apart.
        w_ptr, phi_ptr: float32 (B,), guidance scale and rescaling in [0, 1].
        factor_ptr: float32 (B,), written.
        num: N.
    """
    image = tl.program_id(0).to(tl.int64)
    phi = tl.load(phi_ptr + image)
    factor = 1.0
    if phi != 0.0:
        w = tl.load(w_ptr + image)
        F_ptr += image * F_stride
        F_u_ptr += image * F_stride
        sum_c = tl.zeros((BLOCK,), tl.float32)
        sum_g = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, num, BLOCK):
            offset = first + tl.arange(0, BLOCK)
            inside = offset < num
            F_c = tl.load(F_ptr + offset, mask=inside, other=0.0).to(tl.float32)
            F_u = tl.load(F_u_ptr + offset, mask=inside, other=0.0).to(tl.float32)
            sum_c += F_c
            sum_g += F_u + w * (F_c - F_u)
        mean_c = tl.div_rn(tl.sum(sum_c, 0), tl.cast(num, tl.float32))
        mean_g = tl.div_rn(tl.sum(sum_g, 0), tl.cast(num, tl.float32))
        square_c = tl.zeros((BLOCK,), tl.float32)
        square_g = tl.zeros((BLOCK,), tl.float32)
        for first in range(0, num, BLOCK):
            offset = first + tl.arange(0, BLOCK)
            inside = offset < num
            F_c = tl.load(F_ptr + offset, mask=inside, other=0.0).to(tl.float32)
            F_u = tl.load(F_u_ptr + offset, mask=inside, other=0.0).to(tl.float32)
            from_c = tl.where(inside, F_c - mean_c, 0.0)
            from_g = tl.where(inside, F_u + w * (F_c - F_u) - mean_g, 0.0)
            square_c += from_c * from_c
            square_g += from_g * from_g
        # Both variances have the same divisor, so it cancels.
        ratio = tl.sqrt_rn(tl.div_rn(tl.sum(square_c, 0), tl.sum(square_g, 0)))
        factor = phi * ratio + (1.0 - phi)
    tl.store(factor_ptr + image, factor)
