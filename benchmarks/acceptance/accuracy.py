"""Every kernel against float64 (`acceptance.exact`), in every pair of dtypes, at the sizes that `speed` times and at odd ones.

One bar: the largest error in units of the bound that float32 arithmetic and one rounding to the output allow.

Legend: B images of shape (C, H, W).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

from acceptance import exact
from acceptance.device import GIB, Device, open_device
from acceptance.report import Recorder
from acceptance.rows import FORMS, GUIDANCE, NEXT_C_IN, PAIRS, Form, RowBuffers

LATENT = (4, 64, 64)
BATCHES = (1, 8, 64, 1024)
ODD = (3, 3, 7, 5)

NOISE_TOLERANCE = 1e-6
"""Relative, of the noise's polynomials against the inverse of the normal distribution (`distill_rt.core.noise`)."""
SUM_TOLERANCE = 2e-5
"""Relative, of a standard deviation over up to 2**18 elements in float32 partial sums."""


def run(recorder: Recorder, argument: str) -> None:
    device = open_device(recorder)
    pairs: tuple[tuple[str, str], ...] = PAIRS
    dtypes: tuple[str, ...] = ("fp32", "fp16", "bf16")
    shapes = [(batch, *LATENT) for batch in BATCHES] + [ODD]
    if recorder.dry:
        shapes, pairs, dtypes = [(2, 4, 4, 4), ODD], (PAIRS[0], PAIRS[2]), ("bf16",)
        exact.ROUNDOFF["bfloat16"] *= 2  # Triton's interpreter truncates where compiled code rounds
    worst = Worst(recorder)
    for pair in pairs:
        for shape in shapes:
            for name, form in all_forms().items():
                worst.add(
                    f"table_row {name} {'-'.join(pair)} {_text(shape)}", table_row_error(form, pair, shape, device)
                )
    for dtype in dtypes:
        for shape in shapes:
            for kernel, error in per_image_errors(dtype, shape, device).items():
                worst.add(f"{kernel} {dtype} {_text(shape)}", error)
    if not recorder.dry:
        for pair in PAIRS[:2]:
            worst.add(f"table_row guided-noise {'-'.join(pair)} 1 GiB", large_error(pair, device))
    recorder.figure("cases", worst.num)
    recorder.figure("worst_per_kernel", worst.by_kernel)
    recorder.at_most("error_over_bound", worst.largest, 1.0, note=worst.where)


class Worst:
    """The largest of many errors, overall and per kernel."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.num, self.largest, self.where = 0, 0.0, ""
        self.by_kernel: dict[str, float] = {}

    def add(self, what: str, error: float) -> None:
        kernel = what.split()[0]
        self.num += 1
        self.by_kernel[kernel] = max(self.by_kernel.get(kernel, 0.0), error)
        if not error <= self.largest:
            self.largest, self.where = error, what
        if not error <= 1.0:
            self.recorder.figure(f"wrong: {what}", error)


def all_forms() -> dict[str, Form]:
    """The four that are timed, and a row that uses every term."""
    everything = dataclasses.replace(FORMS["multistep"].row, f=0.2, n=0.15, stream=4)
    return FORMS | {"multistep-noise": Form(row=everything, multistep=True)}


def table_row_error(form: Form, pair: tuple[str, str], shape: tuple[int, ...], device: Device) -> float:
    buffers = RowBuffers(form, pair, shape, num_sets=1, device=device.name, seed=math.prod(shape))
    buffers.kernel(0)()
    return compare(form, buffers, slice(None), device)


def compare(form: Form, buffers: RowBuffers, images: slice, device: Device) -> float:
    """Largest error over bound of next state, x0 and scaled inputs, of some of the images."""
    import torch

    F, F_u = buffers.outputs(0)
    num_images = len(F)
    w = torch.full((num_images,), GUIDANCE, device=device.name)[images]
    combined = exact.guided(F[images], None if F_u is None else F_u[images], w)
    x = buffers.x[0][images]
    z = noise(buffers.seeds[images], form.row.stream, x.shape[1:], device) if form.noise else None
    history = () if buffers.past is None else (buffers.past[0][images],)
    total, x0 = exact.table_row(form.row, x, combined, history=history, z=z)
    errors = [total.ratio(buffers.out[0][images])]
    scaled = exact.scaled(total, float(buffers.row[13]))
    assert abs(float(buffers.row[13]) - NEXT_C_IN) < 1e-6
    errors += [scaled.ratio(half[images]) for half in buffers.scaled[0].split(num_images)]
    if buffers.x0 is not None:
        assert x0 is not None
        errors.append(x0.ratio(buffers.x0[0][images]))
    return max(errors)


def noise(seeds: Any, stream: int, shape: tuple[int, ...], device: Device) -> Any:
    """The CPU's noise, whose bits `acceptance.bits` compares on their own."""
    return _drawn(tuple(seeds.tolist()), stream, tuple(shape), device.name)


@functools.cache
def _drawn(seeds: tuple[int, ...], stream: int, shape: tuple[int, ...], device: str) -> Any:
    """Drawn once: NumPy needs seconds for the largest, and every pair of dtypes asks for it."""
    import torch

    from distill_rt import kernels

    return torch.from_numpy(kernels.unit_noise(seeds, shape, stream)).to(device)


def large_error(pair: tuple[str, str], device: Device) -> float:
    """States of 1 GiB (or what fits): offsets beyond 2**31 bytes; first, middle and last images."""
    num_images = large_batch(pair[0], device)
    form = FORMS["guided-noise"]
    buffers = RowBuffers(form, pair, (num_images, *LATENT), num_sets=1, device=device.name)
    buffers.kernel(0)()
    parts = [slice(0, 8), slice(num_images // 2, num_images // 2 + 8), slice(num_images - 8, num_images)]
    return max(compare(form, buffers, part, device) for part in parts)


def large_batch(state: str, device: Device) -> int:
    """Images of LATENT whose states are 1 GiB, or a sixteenth of the free memory if that is less."""
    size = {"fp32": 4, "fp16": 2, "bf16": 2}[state] * math.prod(LATENT)
    return min(GIB, device.free_bytes // 16) // size


def per_image_errors(dtype: str, shape: tuple[int, ...], device: Device) -> dict[str, float]:
    """The other kernels: errors over what each may make."""
    import numpy as np
    import torch

    from distill_rt.core import noise as core_noise
    from distill_rt.core.table import Row
    from distill_rt.kernels.triton import on_tensors
    from distill_rt.kernels.triton.row_layout import pack_row

    torch_dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    generator = torch.Generator(device.name).manual_seed(7)
    B = shape[0]

    def draw(scale: float = 1.0) -> Any:
        return torch.empty(shape, dtype=torch_dtype, device=device.name).normal_(generator=generator) * scale

    def nan(*size: int) -> Any:
        return torch.full(size, math.nan, device=device.name)

    x, F, F_u = draw(), draw(), draw()
    w = torch.linspace(1.5, 7.5, B, device=device.name)
    errors = {}

    phi, factor = torch.full((B,), 0.7, device=device.name), nan(B)
    on_tensors.guidance_factor(F, F_u, w, phi, factor)
    combined = exact.guided(F, F_u, w).value.flatten(1)
    wanted = 0.7 * F.double().flatten(1).std(1) / combined.std(1) + 0.3
    errors["guidance_factor"] = _finite((factor.double() / wanted - 1).abs().max() / SUM_TOLERANCE)

    row = Row(p=1.25, q=-0.75, threshold_ratio=0.995, threshold_max=100.0)
    bound = nan(B)
    on_tensors.dynamic_threshold(x, F, torch.from_numpy(pack_row(row)).to(device.name), bound)
    _, x0 = exact.table_row(row, x, exact.guided(F, None, None))
    assert x0 is not None
    # The ratio that the kernel reads is float32, and float64 orders the elements: torch.sort has no limit on their number.
    position = float(np.float32(0.995)) * (math.prod(shape[1:]) - 1)
    ordered = x0.value.abs().flatten(1).sort(1).values
    low = ordered[:, math.floor(position)]
    quantile = low + (ordered[:, math.ceil(position)] - low) * (position - math.floor(position))
    allowed = x0.error().flatten(1).max(1).values  # no quantile moves further than the element that moves most
    errors["dynamic_threshold"] = _finite(((bound.double() - quantile.clamp(1.0, 100.0)).abs() / allowed).max())

    images = torch.full((B, *shape[2:], shape[1]), 77, dtype=torch.uint8, device=device.name)
    x = draw(0.7)
    on_tensors.to_uint8(x, images)
    wanted = ((x.double() + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 1)
    errors["to_uint8"] = _finite((images.double() - wanted).abs().max() / (0.5 + 1e-4))

    out = nan(*shape).to(torch_dtype)
    seeds = torch.arange(B, dtype=torch.int64, device=device.name) - B // 2
    start = pack_row(Row(net_id=-1, n=1.0, stream=5))
    on_tensors.philox_normal(out, torch.from_numpy(start).to(device.name), seeds)
    bits = core_noise.uniform_bits(seeds.cpu().numpy().view(np.uint64)[:8], math.prod(shape[1:]), 5)
    p32 = ((bits & np.uint32(0x7FFFFFFF)).astype(np.int32).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-32)
    p = torch.from_numpy(p32.astype(np.float64)).to(device.name)
    sign = torch.from_numpy(1.0 - 2.0 * (bits >> np.uint32(31)).astype(np.float64)).to(device.name)
    z = exact.Interval((sign * torch.special.ndtri(p).abs()).reshape(-1, *shape[1:]), 0.0)
    z.terms = z.value.abs() * NOISE_TOLERANCE / (exact.OPERATIONS * exact.ROUNDOFF["float32"])
    errors["philox_normal"] = z.ratio(out[:8])
    return errors


def _finite(value: Any) -> float:
    number = float(value)
    return number if math.isfinite(number) else math.inf


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
