"""What a benchmark says, as one JSON object and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distill_rt.core import codec

OVERHEAD_BAR_MS = 0.3
"""What a request of one image may cost beside its engine calls (median); a report field, never a timed test."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Distribution of one duration in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    min: float
    max: float

    @classmethod
    def of(cls, values_ms: NDArray[np.float64]) -> Self:
        p50, p90, p99 = (float(value) for value in np.percentile(values_ms, (50, 90, 99)))
        return cls(
            mean=float(values_ms.mean()),
            p50=p50,
            p90=p90,
            p99=p99,
            min=float(values_ms.min()),
            max=float(values_ms.max()),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RunReport:
    """Requests of one size.

    Args:
        num_images: per request.
        latency_ms: of whole requests.
        stages_ms: by stage of `Result.timings_ms`.
        overhead_ms: whole request minus its engine calls.
        images_per_s: over all measured requests, one after the other.
        samples_ms: latency of every request, in order.
    """

    num_images: int
    num_requests: int
    steps: int
    guidance: float | None
    latency_ms: Summary
    stages_ms: Mapping[str, Summary]
    overhead_ms: Summary
    images_per_s: float
    samples_ms: tuple[float, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadReport:
    """`load_ms`: read, verify, load and warm up every compiled batch (packages of the target already on disk cache or not)."""

    load_ms: float
    engine_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """Where it ran; `load_average` (one minute, at the end) tells whether it ran alone."""

    processor: str
    cores: int
    system: str
    python: str
    load_average: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchReport:
    """Everything about one engine on one machine; `peak_memory_bytes` is of the whole process."""

    engine: str
    fingerprint: str
    target: str
    precision: str
    num_threads: int
    batches: tuple[int, ...]
    machine: Machine
    load: LoadReport
    peak_memory_bytes: int | None
    runs: tuple[RunReport, ...]

    @property
    def overhead_ms(self) -> float | None:
        """Median overhead of a request of one image, None if none was measured."""
        return next((run.overhead_ms.p50 for run in self.runs if run.num_images == 1), None)

    def to_json(self) -> dict[str, Any]:
        """One JSON object; ``overhead`` holds the bar and whether it is met."""
        fields = ("engine", "fingerprint", "target", "precision", "num_threads", "batches", "machine", "load")
        overhead = self.overhead_ms
        return {
            **{name: codec.to_json(getattr(self, name)) for name in fields},
            "peak_memory_bytes": self.peak_memory_bytes,
            "overhead": {
                "p50_ms": overhead,
                "bar_ms": OVERHEAD_BAR_MS,
                "within_bar": None if overhead is None else overhead <= OVERHEAD_BAR_MS,
            },
            "runs": [codec.to_json(run) for run in self.runs],
        }
