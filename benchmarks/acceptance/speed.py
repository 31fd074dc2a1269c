"""How fast the kernels are: against a copy, against a launch that does nothing, and against the torch operations they replace.

Every time is the median over replays of a captured graph (`acceptance.timing`). "warm" repeats a launch on the same buffers, as
a request does; "cold" goes round many sets of buffers, together four times the L2 cache (but at most MAX_SETS of them).
Bandwidth is bytes that have to move (each once, `Form.row_bytes`) over the cold time. States of 1 GiB are larger than any
cache anyhow.

Legend: B images of shape (C, H, W), N = C * H * W.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from acceptance.accuracy import BATCHES, LATENT, large_batch
from acceptance.ceilings import copy_gb_per_s
from acceptance.device import GIB, Device, open_device
from acceptance.report import Recorder
from acceptance.rows import FORMS, ITEM_BYTES, PAIRS, Form, RowBuffers, unfused_step
from acceptance.timing import eager_us, graph_us

MAX_SETS = 2048
COPY_BAR = 0.90
NULL_BAR = 1.5
COMPILED_FORMS, COMPILED_PAIRS = ("guided-noise", "multistep"), PAIRS[:2]
"""torch.compile takes seconds for each."""


def run(recorder: Recorder, argument: str) -> None:
    device = open_device(recorder)
    shape, batches = ((4, 8, 8), (1, 2)) if recorder.dry else (LATENT, BATCHES)
    copy = copy_gb_per_s(GIB >> (14 if recorder.dry else 0), device)
    recorder.figure("copy_gb_per_s", copy)
    null = null_us(device, shape)
    recorder.figure("null_kernel_us", null)

    # First what the bars need, then the table that a slow machine may cut short.
    over_null = {}
    pairs = PAIRS[:1] if recorder.dry else PAIRS
    for pair in pairs:
        for name, form in FORMS.items():
            buffers = RowBuffers(form, pair, (1, *shape), num_sets=1, device=device.name)
            over_null[_key(name, pair)] = graph_us([buffers.kernel(0)], device.name) / null["null"]
    recorder.figure("table_row_batch1_over_null", over_null)
    worst = max(over_null, key=lambda key: over_null[key])
    recorder.at_most("table_row_batch1_over_null", over_null[worst], NULL_BAR, speed=True, note=worst)

    over_copy: dict[str, float] = {}
    for pair in pairs:
        num_images = 2 if recorder.dry else large_batch(pair[0], device)
        for name, form in FORMS.items():
            buffers = RowBuffers(form, pair, (num_images, *shape), num_sets=1, device=device.name)
            us = graph_us([buffers.kernel(0)], device.name)
            moved = form.row_bytes(*pair, num_images, math.prod(shape))
            over_copy[_key(name, pair)] = moved / us * 1e-3 / copy
            del buffers
            _release(device)
        recorder.figure("state_bytes_of_1gib", num_images * math.prod(shape) * ITEM_BYTES[pair[0]])
    recorder.figure("table_row_1gib_over_copy", over_copy)
    worst = min(over_copy, key=lambda key: over_copy[key])
    recorder.at_least("table_row_1gib_over_copy", over_copy[worst], COPY_BAR, speed=True, note=worst)

    others(recorder, device, shape, (*batches, 2 if recorder.dry else large_batch("fp32", device)), copy)
    rows: dict[str, Any] = {}
    for pair in pairs:
        for name, form in FORMS.items():
            compiled = compile_step(name, pair, device)
            for batch in (*batches, 2 if recorder.dry else large_batch(pair[0], device)):
                if recorder.time_left() < 12:
                    recorder.figure("cut_short", f"before {_key(name, pair)} batch {batch}")
                    return
                rows[f"{_key(name, pair)} batch {batch}"] = row_times(
                    form, pair, (batch, *shape), device, copy, compiled
                )
                recorder.figure("table_row", rows)
                _release(device)


def row_times(
    form: Form, pair: tuple[str, str], shape: tuple[int, ...], device: Device, copy: float, compiled: Any | None
) -> dict[str, float]:
    """Microseconds of the kernel and of what it replaces, and its bandwidth as a part of the copy's."""
    moved = form.row_bytes(*pair, shape[0], math.prod(shape[1:]))
    buffers = RowBuffers(form, pair, shape, num_sets=num_sets(moved, device), device=device.name)
    launches = [buffers.kernel(i) for i in range(buffers.num_sets)]
    cold = graph_us(launches, device.name)
    times = {
        "warm_us": graph_us(launches[:1], device.name),
        "cold_us": cold,
        "cold_over_copy": moved / cold * 1e-3 / copy,
        "unfused_us": graph_us([buffers.unfused(0)], device.name),
        "num_sets": buffers.num_sets,
    }
    if shape[0] == 1:
        times["eager_us"] = eager_us(launches[0], device.name)
        times["unfused_eager_us"] = eager_us(buffers.unfused(0), device.name)
    if compiled is not None:
        times["compiled_us"] = graph_us([buffers.unfused(0, compiled)], device.name)
    times["unfused_over_fused"] = times["unfused_us"] / times["warm_us"]
    return times


def num_sets(moved: int, device: Device) -> int:
    """Sets of buffers so that a round is four times the L2, within an eighth of the free memory."""
    return max(1, min(MAX_SETS, 4 * device.l2_bytes // moved + 1, device.free_bytes // 8 // moved))


def compile_step(name: str, pair: tuple[str, str], device: Device) -> Callable[..., Any] | None:
    """The torch operations of a form through torch.compile, one version for all sizes; None where that is not timed."""
    if device.name == "cpu" or name not in COMPILED_FORMS or pair not in COMPILED_PAIRS:
        return None
    import torch

    torch._dynamo.reset()  # else the forms, which share code, exhaust one cache of compiled versions
    return torch.compile(unfused_step(FORMS[name]), dynamic=True)


def null_us(device: Device, shape: tuple[int, ...]) -> dict[str, float]:
    """Launches that do nothing: with no arguments, and with the arguments and the grid of table_row for one image."""
    import torch

    from acceptance.null_kernels import null, null_like_table_row
    from distill_rt.kernels.triton.variants import ROW_BLOCK, ROW_WARPS

    x = torch.zeros(16, device=device.name)
    grid = (math.ceil(math.prod(shape) / ROW_BLOCK), 1)
    sizes = (math.prod(shape),) * 5 + (1,)
    return {
        "null": graph_us([lambda: null[(1,)](num_warps=ROW_WARPS)], device.name),
        "null_like_table_row": graph_us(
            [lambda: null_like_table_row[grid](*[x] * 15, *sizes, num_warps=ROW_WARPS)], device.name
        ),
    }


def others(recorder: Recorder, device: Device, shape: tuple[int, ...], batches: tuple[int, ...], copy: float) -> None:
    """The other four kernels; bytes count every input and output once, however often a kernel reads it."""
    figures: dict[str, Any] = {}
    for dtype in ("fp16",) if recorder.dry else ("fp32", "fp16", "bf16"):
        for batch in dict.fromkeys(batches):
            for name, (moved, launch, unfused) in other_kernels(dtype, (batch, *shape), device).items():
                if recorder.time_left() < 40 and not recorder.dry:
                    recorder.figure("others_cut_short", f"before {name} {dtype} batch {batch}")
                    return
                us = graph_us([launch], device.name)
                entry = {"us": us, "over_copy": moved / us * 1e-3 / copy}
                if unfused is not None:
                    entry["unfused_us"] = graph_us([unfused], device.name)
                figures[f"{name} {dtype} batch {batch}"] = entry
            _release(device)
        recorder.figure("other_kernels", figures)


def other_kernels(
    dtype: str, shape: tuple[int, ...], device: Device
) -> dict[str, tuple[int, Callable[[], Any], Callable[[], Any] | None]]:
    """Kernel -> (bytes, launch, the torch operations for the same)."""
    import torch

    from distill_rt.core.table import Row
    from distill_rt.kernels.triton import on_tensors
    from distill_rt.kernels.triton.row_layout import pack_row

    torch_dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    B, total = shape[0], math.prod(shape)
    size = ITEM_BYTES[dtype] * total
    x, F, F_u = (torch.randn(shape, device=device.name, dtype=torch_dtype) for _ in range(3))
    out, ones, factor = torch.empty_like(x), torch.ones(B, device=device.name), torch.empty(B, device=device.name)
    images = torch.empty((B, *shape[2:], shape[1]), dtype=torch.uint8, device=device.name)
    seeds = torch.arange(B, device=device.name)
    noise = torch.from_numpy(pack_row(Row(net_id=-1, n=1.0, stream=1))).to(device.name)
    row = torch.from_numpy(pack_row(Row(p=1.25, q=-0.75, threshold_ratio=0.995, threshold_max=100.0))).to(device.name)
    flat = x.flatten(1)

    def rescale() -> Any:
        guided = F_u + 3.5 * (F - F_u)
        return 0.7 * F.flatten(1).std(1) / guided.flatten(1).std(1) + 0.3

    return {
        "philox_normal": (
            size + 8 * B, lambda: on_tensors.philox_normal(out, noise, seeds), lambda: torch.randn_like(x),
        ),
        "to_uint8": (
            size + total,
            lambda: on_tensors.to_uint8(x, images),
            lambda: ((x + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8).contiguous(),
        ),
        "guidance_factor": (
            2 * size + 12 * B, lambda: on_tensors.guidance_factor(F, F_u, ones, ones, factor), rescale,
        ),
        "dynamic_threshold": (
            2 * size + 4 * B,
            lambda: on_tensors.dynamic_threshold(x, F, row, factor),
            # torch.quantile takes at most 2**24 numbers, and no 16-bit ones.
            (lambda: torch.quantile((1.25 * flat - 0.75 * F.flatten(1)).abs(), 0.995, dim=1))
            if total <= 1 << 24 and dtype == "fp32" else None,
        ),
    }  # fmt: skip


def _key(form: str, pair: tuple[str, str]) -> str:
    return f"{form} {'-'.join(pair)}"


def _release(device: Device) -> None:
    if device.name == "cuda":
        import torch

        torch.cuda.empty_cache()
