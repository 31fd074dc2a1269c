"""Time of launches: CUDA events around replays of a captured graph, medians; without a GPU a wall clock, for dry runs only."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

Launch = Callable[[], Any]

GRAPH_MS = 2.0
"""What one replay should last at least: events are exact to about half a microsecond."""
MAX_LAUNCHES = 1024
NUM_REPLAYS = 15


def graph_us(launches: Sequence[Launch], device: str) -> float:
    """Median microseconds of one launch, back to back inside of a captured graph.

    Args:
        launches: run in turn. One: its buffers stay in the L2 cache as far as they fit. Many on different buffers, together
            several times the L2: every launch finds a cold cache.
    """
    if device == "cpu":
        return wall_us(launches, num=len(launches), repeats=1)
    import torch

    torch.cuda.synchronize()  # whatever fills the buffers is not part of it
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for launch in launches[:3]:  # compiles, chooses algorithms, allocates
            launch()
        stream.synchronize()
        once = _events_us(launches[0])
        rounds = max(1, round(1e3 * GRAPH_MS / max(once, 1.0)) // len(launches))
        num = min(rounds, max(1, MAX_LAUNCHES // len(launches))) * len(launches)
        # Not `torch.cuda.graph`, which collects garbage and empties the allocator's cache around every capture.
        graph = torch.cuda.CUDAGraph()
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            for i in range(num):
                launches[i % len(launches)]()
        finally:
            graph.capture_end()
        for _ in range(3):
            graph.replay()
        times = [_events_us(graph.replay) for _ in range(NUM_REPLAYS)]
        stream.synchronize()
    return statistics.median(times) / num


def eager_us(launch: Launch, device: str, num: int = 50) -> float:
    """Median microseconds of one launch without a graph, launch overhead of the host included."""
    if device == "cpu":
        return wall_us([launch], num=2, repeats=1)
    import torch

    launch()
    torch.cuda.synchronize()
    times = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(num):
            launch()
        torch.cuda.synchronize()
        times.append(1e6 * (time.perf_counter() - start) / num)
    return statistics.median(times)


def wall_us(launches: Sequence[Launch], *, num: int, repeats: int) -> float:
    """Median microseconds per launch by the host's clock; the launches must block."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for i in range(num):
            launches[i % len(launches)]()
        times.append(1e6 * (time.perf_counter() - start) / num)
    return statistics.median(times)


def _events_us(call: Launch) -> float:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(1e3 * start.elapsed_time(end))
