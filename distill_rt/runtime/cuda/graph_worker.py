"""The worker of a GPU: every plan captured as one graph at load; a request writes some numbers, launches, and reads pixels.

Two workers of one engine share its weights and nothing else: each has a stream, execution contexts, buffers and graphs of its
own. Not run on a GPU yet.

Legend: b images of a work, B images of the worker's batch.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.cuda.driver import Driver
from distill_rt.backends.cuda.kernels import PackLauncher
from distill_rt.backends.cuda.programs import CudaBackend, Graph
from distill_rt.backends.engine import Engine
from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.runtime.cuda.step_request import StepRequest
from distill_rt.runtime.cuda.trajectory_request import TrajectoryRequest
from distill_rt.runtime.timing import Stopwatch
from distill_rt.runtime.worker import OnRow, Pixels, Work

Key = tuple[int, bool]
"""(steps, whether the caller brings latents): what decides the work of a request."""


class GraphWorker:
    """A `Worker` on one GPU.

    Args:
        spec: the contract.
        request: puts a request on a stream.
        backend: whose programs the request calls.
        plans: numbers of steps to prepare now.
        capture: False puts every request on the stream anew: slower, and the same images.
        notes: see `Worker.notes`.

    Raises:
        TargetError: a request cannot be captured.
        ResourceError: not enough GPU memory.
    """

    def __init__(
        self,
        spec: StudentSpec,
        request: StepRequest | TrajectoryRequest,
        backend: CudaBackend,
        plans: Iterable[int],
        *,
        capture: bool = True,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.notes = notes
        self._spec, self._request, self._backend = spec, request, backend
        self._driver: Driver = backend.driver()
        self._capture = capture
        self._stream = self._driver.create_stream(self)
        pixels = request.pixels
        self._pinned = self._driver.allocate_pinned(pixels.num_bytes)
        self._images: NDArray[np.uint8] = self._pinned.array[: pixels.num_bytes].reshape(pixels.shape)
        self._graphs: dict[Key, Graph] = {}
        if isinstance(request, StepRequest):
            request.write_null_text(self._stream)
        for steps in plans:
            self._prepare((steps, False))

    @classmethod
    def load(cls, engine: Engine, batch: int, *, capture: bool = True) -> Self:
        """The worker of one compiled batch of an engine.

        Raises:
            TargetError: the backend's runtime refuses the files, no kernel of the engine runs on this GPU, or a request cannot
                be captured.
            ResourceError: not enough GPU memory.
        """
        spec, backend = engine.body.spec, engine.cuda_backend()
        driver = backend.driver()
        driver.use()
        smallest = engine.body.batches[0]
        programs = {}
        for name in engine.body.parts:
            compiled = {item.batch for item in engine.body.components[name]}
            programs[name] = engine.load_device(name, batch if batch in compiled else smallest)
        launcher = PackLauncher(engine.directory, driver)
        trajectory = engine.body.steps  # its plan; None in step mode
        make = StepRequest if trajectory is None else TrajectoryRequest
        request = make(spec, programs, batch, driver, launcher)
        notes = (launcher.note,) if launcher.note else ()
        plans = spec.steps if trajectory is None else (trajectory,)
        return cls(spec, request, backend, plans, capture=capture, notes=notes)

    def warm_up(self) -> None:
        """Nothing: every plan has run already, before it was captured."""

    def run(self, work: Work, out_BHWC: Pixels, watch: Stopwatch, on_row: OnRow | None = None) -> None:
        driver = self._driver
        driver.use()
        own_latents = work.latents is not None
        self._write(work)
        watch.lap("request")
        if on_row is not None:
            self._run_shown(work, own_latents, on_row, watch)
        else:
            key = (work.steps, own_latents)
            if self._capture and key not in self._graphs:
                self._prepare(key)
                watch.lap("load")
            if self._capture:
                self._graphs[key].launch(self._stream)
            else:
                self._enqueue(key)
            driver.synchronize(self._stream)
            watch.lap("network")
        out_BHWC[:] = self._images[: len(out_BHWC)]
        watch.lap("pixels")

    def _run_shown(self, work: Work, own_latents: bool, on_row: OnRow, watch: Stopwatch) -> None:
        """A request with previews: after every row the host waits for the preview, so there is nothing to capture."""
        if not isinstance(self._request, StepRequest):
            raise UsageError(
                "a trajectory engine runs all steps in one call and has no previews",
                code="previews-not-in-engine",
                hint="leave on_step out, or compile a step engine (export --mode step)",
            )
        num = len(work.seeds)

        def show(i: int) -> None:
            self._fetch()
            self._driver.synchronize(self._stream)
            watch.lap("network")
            on_row(i, self._images[:num].copy())
            watch.lap("callback")

        self._request.enqueue(self._stream, work.steps, own_latents=own_latents, on_row=show)
        self._fetch()
        self._driver.synchronize(self._stream)
        watch.lap("network")

    def _prepare(self, key: Key) -> None:
        """Run once, so that kernels are loaded and libraries have initialised; then capture."""
        self._enqueue(key)
        self._driver.synchronize(self._stream)
        if self._capture:
            self._graphs[key] = self._backend.capture(self._stream, lambda: self._enqueue(key))

    def _enqueue(self, key: Key) -> None:
        steps, own_latents = key
        self._request.enqueue(self._stream, steps, own_latents=own_latents)
        self._fetch()

    def _fetch(self) -> None:
        pixels = self._request.pixels
        self._driver.to_host(self._pinned.address, pixels.address, pixels.num_bytes, self._stream)

    def _write(self, work: Work) -> None:
        """The request's numbers into pinned memory; missing images are the last one again, which changes no other."""
        staging, batch = self._request.staging, len(self._images)
        rows = np.minimum(np.arange(batch), len(work.seeds) - 1)
        staging["seeds"][:] = np.asarray(work.seeds, np.uint64).view(np.int64)[rows]
        if work.labels is not None:
            labels = np.asarray(work.labels, np.int64)[rows]
            whole = staging["label"]
            whole[len(whole) - batch :] = labels
            whole[: len(whole) - batch] = self._spec.condition.null_label or 0  # the unconditional half, under cfg
        if work.tokens is not None:
            staging["tokens"][:] = work.tokens[rows]
        for name in ("w", "guidance"):
            if name in staging and work.guidance is not None:
                staging[name].fill(work.guidance)
        if work.latents is not None:
            staging["latents"][:] = work.latents[rows]
