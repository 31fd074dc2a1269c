"""The pipeline: an engine loaded once, requests served from then on.

Legend: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.engine import Engine, open_engine
from distill_rt.core.artifacts import EngineBody
from distill_rt.core.errors import UsageError
from distill_rt.core.noise import image_seeds
from distill_rt.core.spec import StudentSpec
from distill_rt.core.tokenizer import Tokenizer, Tokens
from distill_rt.runtime.batching import Chunk, split
from distill_rt.runtime.open_worker import open_worker
from distill_rt.runtime.request import Request, Result, StepUpdate
from distill_rt.runtime.timing import Stopwatch
from distill_rt.runtime.worker import OnRow, Pixels, Work, Worker

OnStep = Callable[[StepUpdate], None]
Crew = dict[int, Worker]
"""One loaded worker per compiled batch: what serves one request at a time."""

MAX_WORKERS = 64


def load(engine: str | Path, *, preload: bool = True, workers: int = 1, capture: bool = True) -> Pipeline:
    """`Pipeline.load`."""
    return Pipeline.load(engine, preload=preload, workers=workers, capture=capture)


class Pipeline:
    """Images from one engine. Everything slow happens in `load`; a request only fills buffers and calls networks.

    Safe to share between threads: as many requests run at a time as there are workers, the others wait in no particular order.
    Use it as a context manager, or `close` it, to free the networks at a known moment.
    """

    def __init__(self, engine: Engine, *, workers: int = 1, capture: bool = True) -> None:
        if isinstance(workers, bool) or not isinstance(workers, int) or not 1 <= workers <= MAX_WORKERS:
            raise UsageError(
                f"workers must be an integer of 1..{MAX_WORKERS}, got {workers!r}",
                code="workers-out-of-range",
                hint="one is right unless several threads make requests",
            )
        self._engine = engine
        self._capture = capture
        # Last in, first out: with preload=False, a worker that has loaded a batch already is taken first.
        self._idle: queue.LifoQueue[Crew] = queue.LifoQueue()
        self._crews: list[Crew] = [{} for _ in range(workers)]
        for crew in self._crews:
            self._idle.put(crew)
        file, condition = engine.body.tokenizer, engine.body.spec.condition
        self._tokenizer = None if file is None else Tokenizer(engine.directory / file, condition)
        self._thread = threading.local()
        self._closing = threading.Lock()
        self._closed = False
        self.load_ms = 0.0

    @classmethod
    def load(cls, engine: str | Path, *, preload: bool = True, workers: int = 1, capture: bool = True) -> Self:
        """Read, verify and load an engine directory.

        The number of threads of a network call is part of the engine (it decides speed and, on some targets, the last
        bits), so it is chosen when compiling.

        Args:
            engine: directory that ``distill-rt compile`` wrote.
            preload: load every compiled batch and warm it up now; False loads a batch when a request first needs it,
                for programs that make few requests.
            workers: requests that run at the same time, 1 to `MAX_WORKERS`. On a GPU they share the weights, and each has
                buffers, a stream and captured graphs of its own; on a processor each loads the networks again, which pays
                off only for engines that were compiled for fewer threads than there are cores.
            capture: on a GPU, capture every plan as one CUDA graph (the default). False launches every kernel of every
                request: slower, and the same images.

        Raises:
            UsageError: `workers` is out of range.
            ArtifactError: missing, damaged, foreign, or from another version.
            TargetError: compiled for another machine, or its package is not installed.
            ResourceError: not enough GPU memory.
        """
        started = time.perf_counter()
        pipeline = cls(open_engine(engine), workers=workers, capture=capture)
        if preload:
            for crew in pipeline._crews:
                for batch in pipeline.batches:
                    pipeline._open(crew, batch)
                    crew[batch].warm_up()
        pipeline.load_ms = 1e3 * (time.perf_counter() - started)
        return pipeline

    @property
    def spec(self) -> StudentSpec:
        """The contract: what a request may ask for."""
        return self._engine.body.spec

    @property
    def manifest(self) -> EngineBody:
        """What ``engine.json`` says."""
        return self._engine.body

    @property
    def path(self) -> Path:
        """The engine directory."""
        return self._engine.directory

    @property
    def fingerprint(self) -> str:
        """Name of the engine's content."""
        return self._engine.body.fingerprint

    @property
    def batches(self) -> tuple[int, ...]:
        """Numbers of images that are compiled, ascending; other numbers are split and padded."""
        return self._engine.body.batches

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about how the engine runs here, one line each; of the batches loaded so far."""
        return tuple(dict.fromkeys(note for crew in self._crews for worker in crew.values() for note in worker.notes))

    def generate(
        self,
        *,
        labels: Sequence[int] | None = None,
        prompts: Sequence[str] | None = None,
        seed: int | None = None,
        num_images: int | None = None,
        steps: int | None = None,
        guidance: float | None = None,
        latents: NDArray[np.float32] | None = None,
        on_step: OnStep | None = None,
    ) -> Result:
        """Generate images; see `Request` for the arguments.

        Args:
            on_step: called after every row of the step table with a preview (`StepUpdate`), once per batch of the
                request. An exception from it ends the request.

        Raises:
            UsageError: outside of the contract or of the engine (one of mode ``trajectory`` runs one plan, without
                `on_step`); the message lists what is allowed.
        """
        request = Request(
            labels=labels,  # type: ignore[arg-type]  # any sequence; Request makes it a tuple
            prompts=prompts,  # type: ignore[arg-type]
            seed=seed,
            num_images=num_images,
            steps=steps,
            guidance=guidance,
            latents=latents,
        )
        return self.generate_request(request, on_step=on_step)

    def generate_request(self, request: Request, *, on_step: OnStep | None = None) -> Result:
        """`generate` for a `Request`."""
        watch = Stopwatch()
        if on_step is not None and self._engine.body.steps is not None:
            raise UsageError(
                "on_step was given, but this engine computes a whole trajectory in one call: there are no previews",
                code="previews-not-in-engine",
                hint="leave on_step out, or compile a bundle that was exported with --mode step",
            )
        request = self.resolve(request)
        assert request.num_images is not None
        assert request.steps is not None
        assert request.seed is not None
        seeds_B = image_seeds(request.seed, request.num_images)
        channels, height, width = self.spec.image_shape
        images = np.empty((request.num_images, height, width, channels), np.uint8)
        watch.lap("request")
        tokens = None
        if self._tokenizer is not None:
            assert request.prompts is not None
            tokens = self._tokenizer(request.prompts)
            watch.lap("text")
        with self._crew() as crew:
            watch.lap("wait")
            for chunk in split(request.num_images, self.batches):
                self._run_chunk(crew, chunk, request, tokens, seeds_B, images, watch, on_step)
        seeds = tuple(int(seed) for seed in seeds_B)
        watch.lap("request")
        return Result(
            images=images,
            seeds=seeds,
            labels=request.labels,
            prompts=request.prompts,
            cut_prompts=None if tokens is None else tokens.cut,
            steps=request.steps,
            guidance=request.guidance,
            timings_ms=watch.report_ms(),
            engine=self.fingerprint,
            request=request,
        )

    def resolve(self, request: Request) -> Request:
        """The request with nothing left open; `generate_request` does it first, and a caller may, to know before it begins.

        Raises:
            UsageError: outside of the contract or of the engine.
        """
        fixed = self._engine.body.steps
        if fixed is None:
            return request.resolve(self.spec)
        asked = fixed if request.steps is None else request.steps
        resolved = dataclasses.replace(request, steps=asked).resolve(self.spec)
        if resolved.steps != fixed:
            raise UsageError(
                f"steps={asked} is not in this engine: it computes the whole trajectory of {fixed} steps in one call",
                code="steps-not-in-engine",
                hint=f"use steps={fixed}, or compile a bundle that was exported with --mode step or --steps {asked}",
                details={"allowed": [fixed]},
            )
        return resolved

    def close(self) -> None:
        """Free the networks; later requests are refused. Waits for running requests. Closing twice is fine."""
        self._refuse_reentry()
        with self._closing:
            self._closed = True
            idle = [self._idle.get() for _ in self._crews]
            for crew in idle:
                crew.clear()
                self._idle.put(crew)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run_chunk(
        self,
        crew: Crew,
        chunk: Chunk,
        request: Request,
        tokens: Tokens | None,
        seeds_B: NDArray[np.uint64],
        images_BHWC: NDArray[np.uint8],
        watch: Stopwatch,
        on_step: OnStep | None,
    ) -> None:
        if chunk.batch not in crew:
            self._open(crew, chunk.batch)
            watch.lap("load")
        assert request.steps is not None
        members = slice(chunk.start, chunk.start + chunk.count)
        work = Work(
            steps=request.steps,
            seeds=seeds_B[members],
            labels=None if request.labels is None else request.labels[members],
            tokens=None if tokens is None else tokens.ids[members],
            guidance=request.guidance,
            latents=None if request.latents is None else request.latents[members],
        )
        on_row = None if on_step is None else _preview(on_step, chunk, len(self.spec.plans[request.steps].rows))
        crew[chunk.batch].run(work, images_BHWC[members], watch, on_row)

    def _open(self, crew: Crew, batch: int) -> None:
        crew[batch] = open_worker(self._engine, batch, capture=self._capture)

    @contextlib.contextmanager
    def _crew(self) -> Iterator[Crew]:
        """A crew that nobody else uses, as soon as there is one."""
        self._refuse_reentry()
        crew = self._idle.get()
        try:
            if self._closed:
                raise UsageError("this pipeline is closed", code="pipeline-closed", hint="load the engine again")
            self._thread.busy = True
            yield crew
        finally:
            self._thread.busy = False
            self._idle.put(crew)

    def _refuse_reentry(self) -> None:
        """Say it, instead of waiting for ourselves for ever."""
        if getattr(self._thread, "busy", False):
            raise UsageError(
                "a pipeline cannot be used from within its own on_step",
                code="pipeline-reentered",
                hint="collect the previews, and start the next request after this one",
            )


def _preview(on_step: OnStep, chunk: Chunk, num_rows: int) -> OnRow:
    def on_row(i: int, preview_BHWC: Pixels) -> None:
        on_step(StepUpdate(row=i + 1, num_rows=num_rows, start=chunk.start, preview=preview_BHWC))

    return on_row
