"""Compare ways to compute the same answer: alternated in one process, medians, ratios with confidence intervals.

A machine that does other work slows all of them down together, so a ratio holds where a time does not. Times of one variant are
never compared with those of another run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Call = Callable[[], NDArray[Any]]

NUM_RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Samples:
    """Seconds of every round, by variant; rounds are aligned: entry i of all variants was measured in round i."""

    wall: Mapping[str, NDArray[np.float64]]
    busy: Mapping[str, NDArray[np.float64]]
    """Processor time of this process over the number of cores: what a call would take alone if it kept all cores busy.
    Libraries that spin while they wait count that too."""

    def summary(self, name: str) -> dict[str, float]:
        wall = self.wall[name] * 1e3
        return {
            "median_ms": round(float(np.median(wall)), 3),
            "min_ms": round(float(wall.min()), 3),
            "iqr_ms": round(float(np.subtract(*np.percentile(wall, [75, 25]))), 3),
            "busy_median_ms": round(float(np.median(self.busy[name])) * 1e3, 3),
            "rounds": len(wall),
        }

    def ratio(self, slow: str, fast: str) -> dict[str, float]:
        """How many times faster `fast` is: ratio of medians, with a bootstrap over rounds (Efron 1979, percentiles)."""
        a, b = self.wall[slow], self.wall[fast]
        rows = np.random.default_rng(0).integers(0, len(a), (NUM_RESAMPLES, len(a)))
        ratios = np.median(a[rows], axis=1) / np.median(b[rows], axis=1)
        low, high = np.quantile(ratios, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        busy = float(np.median(self.busy[slow]) / np.median(self.busy[fast]))
        return {
            "ratio": round(float(np.median(a) / np.median(b)), 3),
            "low": round(float(low), 3),
            "high": round(float(high), 3),
            "busy_ratio": round(busy, 3),
        }


def alternate(variants: Mapping[str, Call], *, rounds: int, warmup: int = 3) -> Samples:
    """Every variant once per round, in an order that is drawn anew for each round."""
    for call in variants.values():
        for _ in range(warmup):
            call()
    wall: dict[str, list[float]] = {name: [] for name in variants}
    busy: dict[str, list[float]] = {name: [] for name in variants}
    rng = np.random.default_rng(0)
    cores = len(os.sched_getaffinity(0))
    names = list(variants)
    for _ in range(rounds):
        for i in rng.permutation(len(names)):
            name = names[i]
            processor, start = time.process_time(), time.perf_counter()
            variants[name]()
            wall[name].append(time.perf_counter() - start)
            busy[name].append((time.process_time() - processor) / cores)
    return Samples(
        wall={name: np.array(values) for name, values in wall.items()},
        busy={name: np.array(values) for name, values in busy.items()},
    )


def psnr_db(image: NDArray[Any], reference: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio of uint8 images; at most 99."""
    error = float(np.mean((image.astype(np.float64) - reference.astype(np.float64)) ** 2))
    return 99.0 if error == 0.0 else round(min(99.0, 10.0 * float(np.log10(255.0**2 / error))), 1)
