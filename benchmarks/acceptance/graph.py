"""N steps as one captured graph: a small UNet in torch and our Triton kernels around it, from seeds to pixels.

It needs torch and Triton alone, so it says what a graph brings whether or not an engine can be built here. The same launches
run captured and one by one, with the same bits; values that a user changes are changed without another capture; the graph's
time is compared with the sum of its parts, and with what torch does without our kernels.

Legend: B images, 2B evaluations per network call: [uncond, cond].
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import Any

import torch

from acceptance.bundle import NUM_LABELS, make_network, make_spec
from acceptance.device import Device, open_device
from acceptance.report import Recorder
from acceptance.timing import eager_us, graph_us

STEPS = 4
PARTS_BAR = 1.03
REQUESTS = ((7, 3, 2.0), (8, 3, 2.0), (7, 5, 2.0), (7, 3, 3.0))
"""(seed, label, guidance): each of the later ones changes one of them."""


def run(recorder: Recorder, argument: str) -> None:
    device = open_device(recorder)
    torch.backends.cudnn.deterministic = True  # the same algorithm in every call
    loop = Loop(device, num_images=1, dry=recorder.dry)
    recorder.figure("parameters", sum(p.numel() for p in loop.network.parameters()))
    recorder.figure("dtype", str(loop.dtype))
    if recorder.dry:
        check_against_cpu(recorder, loop)
        return
    launch = capture(loop.run, loop.stream)
    eager = [loop.request(loop.run, *request) for request in REQUESTS]
    captured = [loop.request(launch, *request) for request in REQUESTS]
    same = [torch.equal(a, b) for a, b in zip(eager, captured, strict=True)]
    recorder.holds("graph_equals_eager", all(same), note=f"pixels and states of {len(REQUESTS)} requests: {same}")
    changed = [not torch.equal(captured[0], other) for other in captured[1:]]
    again = torch.equal(captured[0], loop.request(launch, *REQUESTS[0]))
    recorder.holds(
        "inputs_change_without_capture", all([*changed, again, *same]), note=f"seed, label, guidance: {changed}"
    )
    times = {
        "graph_us": eager_us(launch, device.name, 20),
        "no_graph_us": eager_us(loop.on_stream(loop.run), device.name, 10),
        "torch_us": eager_us(loop.on_stream(loop.torch_run), device.name, 10),
    }
    recorder.figure("latency_batch_1", times)
    recorder.figure("torch_over_graph", times["torch_us"] / times["graph_us"])
    parts(recorder, loop)
    threads(recorder, device)
    larger(recorder, device)
    recorder.figure("peak_memory_bytes", torch.cuda.max_memory_allocated())


class Loop:
    """Buffers of one plan, and the launches of one request.

    Everything that a request may change lies in device memory: seeds, labels, w. Rows and times lie there, too.
    """

    def __init__(self, device: Device, *, num_images: int, dry: bool) -> None:
        from distill_rt.kernels.triton.row_layout import is_fast, pack_start, pack_table

        name, B = device.name, num_images
        self.dtype = torch.float32 if dry else torch.float16
        self.network = make_network(dry).to(name, self.dtype)
        self.spec = make_spec(self.network.sample_shape)
        table = self.spec.plans[STEPS]
        shape = self.spec.sample_shape
        packed = pack_table(table)
        self.fast = [is_fast(row) for row in packed]
        self.table = table
        self.start = torch.from_numpy(pack_start(table)).to(name)
        self.rows = torch.from_numpy(packed).to(name)
        self.times = [torch.full((2 * B,), row.time, device=name) for row in table.rows]
        self.x = torch.empty((B, *shape), device=name)
        self.scaled = torch.empty((2 * B, *shape), device=name, dtype=self.dtype)
        self.x0 = torch.empty_like(self.x)
        self.pixels = torch.empty((B, *shape[1:], shape[0]), dtype=torch.uint8, device=name)
        self.w, self.factor = torch.full((B,), 2.0, device=name), torch.ones(B, device=name)
        self.seeds = torch.arange(B, device=name)
        self.labels = torch.full((2 * B,), NUM_LABELS, device=name)
        self.stream = torch.cuda.Stream() if name == "cuda" else None

    def run(self) -> None:
        """From seeds to pixels with our kernels: 2 + 2 * STEPS launches, the network counted as one."""
        from distill_rt.kernels.triton import on_tensors

        on_tensors.philox_normal(self.x, self.start, self.seeds, scaled=self.scaled, num_copies=2)
        for i in range(STEPS):
            self.row(i, self.network(self.scaled, self.times[i], self.labels))
        on_tensors.to_uint8(self.x, self.pixels)

    def row(self, i: int, F: Any) -> None:
        from distill_rt.kernels.triton import on_tensors

        half = len(self.x)
        on_tensors.table_row(
            self.x, F[half:], self.rows[i], self.x, F_u=F[:half], w=self.w, factor=self.factor,
            seeds=self.seeds if self.table.rows[i].n else None, scaled=self.scaled, num_copies=2, general=not self.fast[i],
        )  # fmt: skip

    def torch_run(self) -> Any:
        """The same loop as a pipeline and its scheduler write it: numbers from the host, one torch operation after another."""
        w = float(REQUESTS[0][2])
        x = torch.randn_like(self.x) * self.table.init_scale
        for i, row in enumerate(self.table.rows):
            doubled = torch.cat([x, x]).mul(row.c_in).to(self.dtype)
            F_u, F = self.network(doubled, self.times[i], self.labels).float().chunk(2)
            F = F_u + w * (F - F_u)
            x0 = row.p * x + row.q * F
            x = row.r * x + row.g * x0
            if row.n:
                x = x + row.n * torch.randn_like(x)
        return ((x / 2 + 0.5).clamp(0, 1) * 255).round().permute(0, 2, 3, 1).to(torch.uint8)

    def on_stream(self, call: Callable[[], Any]) -> Callable[[], None]:
        def wrapped() -> None:
            with torch.cuda.stream(self.stream):
                call()

        return wrapped

    def request(self, launch: Callable[[], Any], seed: int, label: int, w: float) -> Any:
        """Pixels and states of one request as bytes, on the host."""
        B = len(self.x)
        self.write(seed, label, w)
        if self.stream is None:
            launch()
        else:
            torch.cuda.synchronize()
            self.x.fill_(math.nan)  # whatever was there before
            self.pixels.fill_(77)
            torch.cuda.synchronize()
            with torch.cuda.stream(self.stream):
                launch()
            self.stream.synchronize()
        state = self.x.reshape(B, -1).contiguous().view(torch.uint8)
        return torch.cat([state, self.pixels.reshape(B, -1)], 1).cpu()

    def write(self, seed: int, label: int, w: float) -> None:
        B = len(self.x)
        self.seeds.copy_(torch.arange(seed, seed + B))
        self.labels[B:] = label
        self.w.fill_(w)


def capture(call: Callable[[], Any], stream: Any) -> Callable[[], None]:
    """`call` captured after running twice on the stream: kernels are compiled, and libraries have their workspaces."""
    with torch.cuda.stream(stream):
        for _ in range(2):
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        call()

    def launch() -> None:
        with torch.cuda.stream(stream):
            graph.replay()

    return launch


def parts(recorder: Recorder, loop: Loop) -> None:
    """The graph against the sum of its parts, each timed in a graph of its own, and against its kernels by the profiler."""
    from distill_rt.kernels.triton import on_tensors

    F = torch.randn_like(loop.scaled)
    start = graph_us(
        [lambda: on_tensors.philox_normal(loop.x, loop.start, loop.seeds, scaled=loop.scaled, num_copies=2)], "cuda"
    )
    network = graph_us([lambda: loop.network(loop.scaled, loop.times[0], loop.labels)], "cuda")
    rows = [graph_us([functools.partial(loop.row, i, F)], "cuda") for i in range(STEPS)]
    pixels = graph_us([lambda: on_tensors.to_uint8(loop.x, loop.pixels)], "cuda")
    whole = graph_us([loop.run], "cuda")
    total = start + STEPS * network + sum(rows) + pixels
    recorder.figure("parts_us", {"start": start, "network": network, "rows": rows, "pixels": pixels, "graph": whole})
    recorder.at_most(
        "graph_over_parts",
        whole / total,
        PARTS_BAR,
        speed=True,
        note="parts: network, rows, noise and pixels in graphs",
    )
    try:
        kernels = profiled_us(loop.on_stream(loop.run))
        recorder.figure("profiled_kernels_us", kernels)
        recorder.figure("graph_over_profiled_kernels", whole / kernels)
    except Exception as error:  # the profiler needs permissions that a container may not have
        recorder.figure("profiled_kernels_us", f"{type(error).__name__}: {error}"[:300])


def profiled_us(call: Callable[[], Any]) -> float:
    """Sum of the durations of all kernels of one call, without what lies between them."""
    from torch.profiler import ProfilerActivity, profile

    call()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        call()
        torch.cuda.synchronize()
    total = sum(event.self_device_time_total for event in profiler.key_averages())
    if not total:
        raise RuntimeError("the profiler saw no kernel")
    return float(total)


def threads(recorder: Recorder, device: Device) -> None:
    """Two workers with streams and graphs of their own, at once, against one alone."""
    loops = [Loop(device, num_images=1, dry=False) for _ in range(2)]
    launches = [capture(loop.run, loop.stream) for loop in loops]
    alone = [[loops[0].request(launches[0], seed, 3, 2.0) for seed in range(base, base + 8)] for base in (0, 100)]
    together: list[list[Any]] = [[], []]
    errors: list[BaseException] = []

    def work(i: int) -> None:
        try:
            together[i] = [loops[i].request(launches[i], seed, 3, 2.0) for seed in range(100 * i, 100 * i + 8)]
        except BaseException as error:  # a thread's failure must not pass for equality
            errors.append(error)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    same = not errors and all(
        len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        for a, b in zip(alone, together, strict=True)
    )
    recorder.holds("threads_same_bits", same, note="; ".join(map(str, errors))[:300])


def larger(recorder: Recorder, device: Device) -> None:
    """Latency of more images per request."""
    figures = {}
    for num_images in (8, 32):
        if recorder.time_left() < 10:
            break
        loop = Loop(device, num_images=num_images, dry=False)
        launch = capture(loop.run, loop.stream)
        figures[f"batch {num_images}"] = {
            "graph_us": eager_us(launch, device.name, 5),
            "no_graph_us": eager_us(loop.on_stream(loop.run), device.name, 5),
            "torch_us": eager_us(loop.on_stream(loop.torch_run), device.name, 5),
        }
        recorder.figure("latency_larger", figures)
        del loop, launch
        torch.cuda.empty_cache()


def check_against_cpu(recorder: Recorder, loop: Loop) -> None:
    """Dry run: the interpreted kernels make the states that the reference interpreter of step tables makes."""
    import numpy as np

    from distill_rt.export.trajectory import run_plan
    from distill_rt.kernels import reference

    def evaluate(net_id: int, inputs: Any) -> Any:
        return loop.network(*(torch.from_numpy(inputs[key]) for key in ("sample", "time", "label"))).numpy()

    worst, results = 0.0, []
    for seed, label, w in REQUESTS:
        wanted = run_plan(loop.spec, evaluate, steps=STEPS, guidance=w, seeds=[seed], labels=[label])
        results.append(loop.request(loop.run, seed, label, w))
        worst = max(worst, float(np.abs(loop.x.numpy() - wanted).max()))
        assert np.array_equal(loop.pixels.numpy(), reference.to_uint8(loop.x.numpy()))
    recorder.at_most("states_from_run_table", worst, 1e-4)
    changed = [not torch.equal(results[0], other) for other in results[1:]]
    recorder.holds("inputs_change_without_capture", all(changed), note=f"seed, label, guidance: {changed}")
