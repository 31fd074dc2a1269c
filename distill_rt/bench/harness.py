"""Measure an engine the way it is used: `Pipeline.generate`, request after request.

Compilation is left out, loading is reported on its own, and warm-up requests come before the measured ones. Every measured
request must give the same images as the first one of its seed, or there is nothing worth timing.
"""

from __future__ import annotations

import gc
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends import processor
from distill_rt.bench.report import BenchReport, LoadReport, Machine, RunReport, Summary
from distill_rt.core.errors import DistillError
from distill_rt.runtime.pipeline import Pipeline
from distill_rt.runtime.request import Request, Result

STAGES = ("request", "wait", "noise", "network", "table", "pixels")
"""Stages of `Result.timings_ms` that every request has."""
OPTIONAL_STAGES = ("text", "decode")
"""Those of students with text or a decoder."""
PROMPT = "a photograph of a red bicycle leaning against a white wall"


def bench_engine(
    engine: str | Path,
    *,
    num_images: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    num_requests: int = 100,
    num_warmup: int = 10,
) -> BenchReport:
    """Load an engine and time requests of each size.

    Args:
        engine: engine directory.
        num_images: images per request, one run each; None takes 1 and every compiled batch.
        labels: for every request; None takes label 0 where the student needs one.
        prompts: for every request; None takes `PROMPT` where the student needs one. Repeated requests find its embedding in
            the cache, as a server's do; ``text`` of the first request, in the warm-up, is what a new prompt costs.
        steps, guidance: as in `Request`.
        num_requests, num_warmup: per run.

    Raises:
        DistillError: the engine cannot be loaded, or the request is outside of its contract.
    """
    pipeline = Pipeline.load(engine)
    with pipeline:
        if labels is None and pipeline.spec.condition.kind == "label":
            labels = (0,)
        if prompts is None and pipeline.spec.condition.kind == "text":
            prompts = (PROMPT,)
        sizes = sorted(set(num_images or (1, *pipeline.batches)))
        requests = [  # all of them are checked before the first is measured
            pipeline.resolve(
                Request(
                    labels=None if labels is None else tuple(labels),
                    prompts=None if prompts is None else tuple(prompts),
                    seed=seed,
                    num_images=size,
                    steps=steps,
                    guidance=guidance,
                )
            )
            for size in sizes
        ]
        runs = [_run(pipeline, request, num_requests, num_warmup) for request in requests]
        body = pipeline.manifest
        return BenchReport(
            engine=str(engine),
            fingerprint=body.fingerprint,
            target=body.target,
            precision=body.precision,
            num_threads=body.options["num_threads"],
            batches=body.batches,
            machine=describe_machine(),
            load=LoadReport(load_ms=pipeline.load_ms, engine_bytes=_size(Path(engine))),
            peak_memory_bytes=_peak_memory_bytes(),
            runs=tuple(runs),
        )


def _run(pipeline: Pipeline, request: Request, num_requests: int, num_warmup: int) -> RunReport:
    expected = pipeline.generate_request(request)
    for _ in range(num_warmup):
        pipeline.generate_request(request)
    results = []
    gc.collect()
    for _ in range(num_requests):
        result = pipeline.generate_request(request)
        if not np.array_equal(result.images, expected.images):
            raise DistillError(
                f"two requests with seed {request.seed} gave different images",
                code="bench-not-repeatable",
                hint="this engine is not deterministic; please report it",
            )
        results.append(result)
    return _summarise(expected, results)


def _summarise(first: Result, results: Sequence[Result]) -> RunReport:
    total_ms = _column(results, "total")
    network_ms = _column(results, "network")
    if "decode" in results[0].timings_ms:
        network_ms = network_ms + _column(results, "decode")
    num_images = len(first.images)
    return RunReport(
        num_images=num_images,
        num_requests=len(results),
        steps=first.steps,
        guidance=first.guidance,
        latency_ms=Summary.of(total_ms),
        stages_ms={
            stage: Summary.of(_column(results, stage))
            for stage in (*STAGES, *OPTIONAL_STAGES)
            if stage in results[0].timings_ms
        },
        overhead_ms=Summary.of(total_ms - network_ms),
        images_per_s=1e3 * num_images * len(results) / float(total_ms.sum()),
        samples_ms=tuple(float(value) for value in total_ms),
    )


def _column(results: Sequence[Result], stage: str) -> NDArray[np.float64]:
    return np.array([result.timings_ms[stage] for result in results])


def describe_machine() -> Machine:
    """This machine and how busy it is."""
    return Machine(
        processor=processor.name(),
        cores=processor.available_cores(),
        system=platform.platform(),
        python=platform.python_version(),
        load_average=os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
    )


def _peak_memory_bytes() -> int | None:
    """Highest resident size of this process so far; None where the system does not say."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file())
