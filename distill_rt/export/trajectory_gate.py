"""The gate of a trajectory engine: its pixels against the images that the student makes step by step.

The engine answers in bytes, so it is compared with the student's images as bytes, on the scale [-1, 1]. Where the student's
value lies on the edge between two bytes, either of them is right; everywhere else one byte off counts in full.

Legend: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.artifacts import Distance, GateReport, Precision
from distill_rt.core.noise import unit_noise
from distill_rt.core.spec import TRAJECTORY, StudentSpec
from distill_rt.export.distance import distance, typical_norm, worst
from distill_rt.export.gate import COMPONENT_BARS, TRAJECTORY_BARS, LoadProgram, evaluate_rows, require_within, run_gate
from distill_rt.export.golden import Golden, TrajectoryGolden
from distill_rt.export.progress import Progress, silent
from distill_rt.kernels.reference import to_uint8

Array = NDArray[Any]

EDGE = 1e-3
"""How near to the edge between two bytes, in bytes, either is right: float32 orders of sums move a value by some 1e-4."""


def gate_engine(
    spec: StudentSpec,
    steps: int | None,
    golden: Golden,
    load_program: LoadProgram,
    *,
    precision: Precision,
    batches: Sequence[int],
    joined: bool = False,
    device: str = "",
    progress: Progress = silent,
) -> GateReport:
    """The gate of an engine of either mode.

    Args:
        steps: the plan of a trajectory engine; None for step mode. The rest as in `run_gate`.

    Raises:
        GateError: says which component or trajectory, and how far it is.
    """
    if steps is None:
        return run_gate(
            spec,
            golden,
            load_program,
            precision=precision,
            batches=batches,
            joined=joined,
            device=device,
            progress=progress,
        )
    return run_trajectory_gate(
        spec, golden.trajectories, load_program, precision=precision, batches=batches, device=device, progress=progress
    )


def trajectory_feeds(spec: StudentSpec, run: TrajectoryGolden) -> dict[str, Array]:
    """Inputs of a trajectory graph (`StudentSpec.trajectory`) for the images of a golden trajectory."""
    num_images = len(run.seeds)
    ((inputs, _),) = spec.trajectory(run.steps).values()
    streams = {"noise": 0} | {f"noise_{stream}": stream for stream in spec.plans[run.steps].streams}
    values: dict[str, Array] = {"guidance": np.full(num_images, run.guidance, np.float32)}
    if run.labels is not None:
        values["label"] = np.array(run.labels, np.int64)
    if run.tokens is not None:
        values["tokens"] = run.tokens
    for name, stream in streams.items():
        values[name] = unit_noise(run.seeds, spec.sample_shape, stream)
    return {tensor.name: values[tensor.name] for tensor in inputs}


def run_trajectory_gate(
    spec: StudentSpec,
    trajectories: Sequence[TrajectoryGolden],
    load_program: LoadProgram,
    *,
    precision: Precision,
    batches: Sequence[int],
    device: str = "",
    progress: Progress = silent,
) -> GateReport:
    """Compare a trajectory engine with the student's golden images, at every batch.

    Raises:
        GateError: says which trajectory, and how far it is.
    """
    bar = TRAJECTORY_BARS[precision]
    norm = trajectory_norm(trajectories)
    figures: dict[str, list[Distance]] = {run.name: [] for run in trajectories}
    done, num_checks = 0, len(batches) * len(trajectories)
    for num_images in batches:
        program = load_program(TRAJECTORY, num_images)
        for run in trajectories:
            progress("gate", done, num_checks)
            got = evaluate_rows(program, trajectory_feeds(spec, run))
            figures[run.name].append(check_images(got, run, norm, bar, f"trajectory {run.name} at batch {num_images}"))
            done += 1
    progress("gate", num_checks, num_checks)
    return GateReport(
        component_bar=COMPONENT_BARS[precision],
        trajectory_bar=bar,
        components={},
        trajectories={name: worst(items) for name, items in figures.items()},
        device=device,
    )


def trajectory_norm(trajectories: Sequence[TrajectoryGolden]) -> float:
    """What errors are relative to."""
    return typical_norm(np.concatenate([run.images for run in trajectories]))


def check_images(got_BHWC: Array, run: TrajectoryGolden, norm: float, bar: Distance, what: str) -> Distance:
    """The distance of pixels from the student's.

    Raises:
        GateError: above the bar.
    """
    level = (np.clip(run.images, -1, 1).transpose(0, 2, 3, 1) + 1) * 127.5
    right = np.abs(got_BHWC - level) <= 0.5 + EDGE
    want_BHWC = np.where(right, got_BHWC, to_uint8(run.images))
    got, want = (pixels.astype(np.float64) / 127.5 - 1 for pixels in (got_BHWC, want_BHWC))
    return require_within(distance(got, want, norm), bar, what)


def golden_rows(spec: StudentSpec, trajectories: Sequence[TrajectoryGolden]) -> dict[str, Array]:
    """Inputs of all golden trajectories as rows of one table."""
    feeds = [trajectory_feeds(spec, run) for run in trajectories]
    return {name: np.concatenate([values[name] for values in feeds]) for name in feeds[0]}
