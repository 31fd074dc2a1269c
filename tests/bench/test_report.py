"""The harness: figures from known durations, and no figures for an engine that does not repeat itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distill_rt.bench import bench_engine
from distill_rt.bench.report import Summary
from distill_rt.core.errors import DistillError
from distill_rt.runtime.sampler import Sampler


def test_summary_of_known_durations() -> None:
    summary = Summary.of(np.arange(101, dtype=np.float64))
    assert (summary.mean, summary.p50, summary.p90, summary.p99, summary.min, summary.max) == (50, 50, 90, 99, 0, 100)


def test_an_engine_that_does_not_repeat_itself_is_not_timed(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = Sampler.run, []

    def drifting(self: Sampler, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return run(self, *args, **kwargs) + np.float32(0.1 * len(calls))

    monkeypatch.setattr(Sampler, "run", drifting)
    with pytest.raises(DistillError) as caught:
        bench_engine(engine, num_images=[1], num_requests=3, num_warmup=0)
    assert caught.value.code == "bench-not-repeatable"
