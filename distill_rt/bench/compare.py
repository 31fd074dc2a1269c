"""Engines of one student side by side: modes and precisions, with time and distance from the first one's images.

In every round each engine answers one request of the same seed, and the order changes from round to round; so a busy machine
slows all of them, and ratios are between neighbours in time.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from distill_rt.bench.harness import PROMPT, describe_machine
from distill_rt.bench.report import Machine, Summary
from distill_rt.core.errors import UsageError
from distill_rt.core.noise import NUM_SEEDS
from distill_rt.runtime.pipeline import Pipeline
from distill_rt.runtime.request import Request

PSNR_CAP_DB = 200.0
"""PSNR of equal images, which would be infinite."""
CONTRACT = ("sample_shape", "image_shape", "process", "parameterization", "condition", "guidance")
"""What engines of one student have in common; plans may be fewer, and networks narrower or stitched."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One engine of a comparison.

    Args:
        latency_ms: of whole requests.
        speedup: median over rounds of the reference's time by this one's.
        relative_l2, psnr_db: of all images, on the scale [-1, 1], from those of the reference.
        equal: share of bytes that are the same.
    """

    engine: str
    target: str
    mode: str
    precision: str
    steps: int
    load_ms: float
    latency_ms: Summary
    speedup: float
    relative_l2: float
    psnr_db: float
    equal: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Variants, the reference first."""

    machine: Machine
    num_images: int
    num_rounds: int
    guidance: float | None
    variants: tuple[Variant, ...]


def compare_engines(
    engines: Sequence[str | Path],
    *,
    num_images: int = 1,
    labels: Sequence[int] | None = None,
    prompts: Sequence[str] | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    num_rounds: int = 30,
    num_warmup: int = 3,
) -> Comparison:
    """Time engines of one student in turns.

    Args:
        engines: the first one is the reference: in step mode and fp32, its images are the student's.
        num_images, labels, prompts, guidance: of every request; round k uses `seed` + k * `num_images`.
        steps: the plan; None takes that of the trajectory engines among them, else the contract's default.

    Raises:
        UsageError: the engines are not of one student, or the request is outside of a contract or an engine.
        DistillError: an engine cannot be loaded.
    """
    Request(seed=seed, num_images=num_images)  # refuses what is none, before anything is loaded
    with contextlib.ExitStack() as stack:
        pipelines = [stack.enter_context(Pipeline.load(engine)) for engine in engines]
        _check_one_student(pipelines)
        first = pipelines[0].spec
        if labels is None and first.condition.kind == "label":
            labels = (0,)
        if prompts is None and first.condition.kind == "text":
            prompts = (PROMPT,)
        if steps is None:
            fixed = [pipeline.manifest.steps for pipeline in pipelines if pipeline.manifest.steps is not None]
            steps = fixed[0] if fixed else first.default_steps
        requests = [
            Request(
                labels=None if labels is None else tuple(labels),
                prompts=None if prompts is None else tuple(prompts),
                seed=(seed + k * num_images) % NUM_SEEDS,
                num_images=num_images,
                steps=steps,
                guidance=guidance,
            )
            for k in range(-num_warmup, num_rounds)
        ]
        times_ms, images, resolved = _rounds(pipelines, requests)
    times_ms, images = times_ms[num_warmup:], [kept[num_warmup:] for kept in images]
    return Comparison(
        machine=describe_machine(),
        num_images=num_images,
        num_rounds=num_rounds,
        guidance=resolved,
        variants=tuple(
            _variant(str(engine), pipeline, steps, times_ms[:, i], times_ms[:, 0], images[i], images[0])
            for i, (engine, pipeline) in enumerate(zip(engines, pipelines, strict=True))
        ),
    )


def _check_one_student(pipelines: Sequence[Pipeline]) -> None:
    first = pipelines[0]
    for other in pipelines[1:]:
        for name in CONTRACT:
            if getattr(other.spec, name) != getattr(first.spec, name):
                raise UsageError(
                    f"{other.path} is not of the student of {first.path}: their contracts differ in {name}",
                    code="engines-not-comparable",
                    hint="compare engines of one student",
                    details={"part": name},
                )


def _rounds(
    pipelines: Sequence[Pipeline], requests: Sequence[Request]
) -> tuple[NDArray[np.float64], list[NDArray[np.uint8]], float | None]:
    """Milliseconds (rounds, engines), images of every engine (rounds, B, H, W, C), and the guidance scale that was used."""
    times_ms = np.empty((len(requests), len(pipelines)))
    images: list[list[NDArray[np.uint8]]] = [[] for _ in pipelines]
    guidance = None
    gc.collect()
    for k, request in enumerate(requests):
        for i in np.roll(np.arange(len(pipelines)), k).tolist():
            result = pipelines[i].generate_request(request)
            times_ms[k, i] = result.timings_ms["total"]
            images[i].append(result.images)
            guidance = result.guidance
    return times_ms, [np.stack(kept) for kept in images], guidance


def _variant(
    engine: str,
    pipeline: Pipeline,
    steps: int,
    times_ms: NDArray[np.float64],
    reference_ms: NDArray[np.float64],
    images: NDArray[np.uint8],
    reference: NDArray[np.uint8],
) -> Variant:
    got, want = (pixels.astype(np.float64) / 127.5 - 1 for pixels in (images, reference))
    mean_square = float(np.square(got - want).mean())
    body = pipeline.manifest
    return Variant(
        engine=engine,
        target=body.target,
        mode=body.mode,
        precision=body.precision,
        steps=steps,
        load_ms=pipeline.load_ms,
        latency_ms=Summary.of(times_ms),
        speedup=float(np.median(reference_ms / times_ms)),
        relative_l2=math.sqrt(mean_square / (float(np.square(want).mean()) or 1.0)),
        psnr_db=PSNR_CAP_DB if mean_square == 0 else min(PSNR_CAP_DB, 10 * math.log10(4 / mean_square)),
        equal=float((images == reference).mean()),
    )
