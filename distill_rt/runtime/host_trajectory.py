"""Trajectory mode on the host: draw the noise, fill in the request, one call, pixels.

Legend: b images of this work, B images of the batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from distill_rt import kernels
from distill_rt.backends.base import Program
from distill_rt.backends.engine import Engine
from distill_rt.core.noise import INITIAL_STREAM
from distill_rt.core.spec import TRAJECTORY, StudentSpec
from distill_rt.runtime.timing import Stopwatch
from distill_rt.runtime.worker import OnRow, Pixels, Work


class HostTrajectoryWorker:
    """A `Worker` around the one program of a trajectory engine.

    Args:
        spec: the contract.
        steps: the plan that the program runs.
        program: inputs and output of `spec.trajectory(steps)`, for B images.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, spec: StudentSpec, steps: int, program: Program) -> None:
        self._steps = steps
        self._shape = spec.sample_shape
        self._program, self._inputs = program, program.inputs
        (self._images,) = program.outputs.values()
        self._streams = {f"noise_{stream}": stream for stream in spec.plans[steps].streams}
        self._seeds_B = np.zeros(len(self._images), np.uint64)

    @classmethod
    def load(cls, engine: Engine, batch: int) -> Self:
        """The worker of one compiled batch of an engine.

        Raises:
            TargetError: the backend's runtime refuses the files.
        """
        body = engine.body
        assert body.steps is not None
        return cls(body.spec, body.steps, engine.load(TRAJECTORY, batch))

    def warm_up(self) -> None:
        """See `Worker.warm_up`."""
        self._program.run()

    def run(self, work: Work, out_BHWC: Pixels, watch: Stopwatch, on_row: OnRow | None = None) -> None:
        """See `Worker.run`. There are no rows to watch: the pipeline refuses `on_step`, and requests for other plans."""
        assert work.steps == self._steps
        assert on_row is None
        num = len(work.seeds)
        _fill(self._seeds_B, work.seeds)
        if work.labels is not None:
            _fill(self._inputs["label"], np.asarray(work.labels))
        if work.tokens is not None:
            _fill(self._inputs["tokens"], work.tokens)
        if work.guidance is not None:
            self._inputs["guidance"].fill(work.guidance)
        watch.lap("request")
        if work.latents is None:
            kernels.unit_noise(self._seeds_B, self._shape, INITIAL_STREAM, out=self._inputs["noise"])
        else:
            _fill(self._inputs["noise"], work.latents)
        for name, stream in self._streams.items():
            kernels.unit_noise(self._seeds_B, self._shape, stream, out=self._inputs[name])
        watch.lap("noise")
        self._program.run()
        watch.lap("network")
        np.copyto(out_BHWC, self._images[:num])
        watch.lap("pixels")


def _fill(buffer_B: NDArray[Any], values_b: NDArray[Any]) -> None:
    """The rows of a work, then its last one again: padding changes no other image."""
    buffer_B[: len(values_b)] = values_b
    buffer_B[len(values_b) :] = values_b[-1]
