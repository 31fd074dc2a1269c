"""The gate: a compiled engine must answer what the student answered, or nothing is published.

Every component runs its golden inputs at every batch of the engine; every golden trajectory runs at the smallest batch.
The worst figure of each is kept and compared with the bar of the precision.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.base import Program, component_batches
from distill_rt.core.artifacts import Distance, GateReport, Precision
from distill_rt.core.errors import GateError
from distill_rt.core.spec import StudentSpec
from distill_rt.export.distance import distance, typical_norm, within, worst
from distill_rt.export.golden import Golden
from distill_rt.export.progress import Progress, silent
from distill_rt.export.trajectory import run_components

Array = NDArray[Any]
LoadProgram = Callable[[str, int], Program]
"""``load_program(component, num_images)``."""

COMPONENT_BARS: Mapping[Precision, Distance] = {
    # One evaluation. Healthy engines measure fp32 2e-6, the order of sums; bf16 1e-2, and 0.07 in rows of least noise,
    # where the network must tell noise of 0.02 from an image that bfloat16 rounds to 0.004. Without one of its middle
    # layers the digits teacher measures 0.08: in bf16 that is for the trajectories to find.
    "fp32": Distance(relative_l2=1e-4, psnr_db=70.0, cosine=0.999999),
    "bf16": Distance(relative_l2=1.5e-1, psnr_db=25.0, cosine=0.98),
    # Three more bits than bfloat16: an eighth of its bars. ONNX Runtime on the float16 graph of a digits teacher: images
    # 3e-4 off. Not run on a GPU yet.
    "fp16": Distance(relative_l2=1.9e-2, psnr_db=43.0, cosine=0.9997),
    # 8-bit products of trained digits networks, their Q/DQ graphs in float16 in ONNX Runtime: students 0.05, the teacher 0.16
    # in rows of least noise. Loose on purpose, as in bf16. Not run on a GPU yet.
    "fp8": Distance(relative_l2=3e-1, psnr_db=20.0, cosine=0.96),
    "int8": Distance(relative_l2=3e-1, psnr_db=20.0, cosine=0.96),
}
TRAJECTORY_BARS: Mapping[Precision, Distance] = {
    # Finished images, the figure that counts: the table weighs errors of low-noise rows down, and early ones are fed back.
    # Healthy engines measure fp32 1e-6, bf16 8e-3 (PSNR 51 dB); without one middle layer the digits teacher measures 0.21.
    "fp32": Distance(relative_l2=1e-3, psnr_db=60.0, cosine=0.99999),
    "bf16": Distance(relative_l2=3e-2, psnr_db=36.0, cosine=0.999),
    "fp16": Distance(relative_l2=3.8e-3, psnr_db=54.0, cosine=0.99998),
    # The same graphs: students 0.03, the teacher in 4 steps at guidance 4 0.045. Twice the students'. Scales of half the size
    # measure 0.07, of a quarter 0.19, a middle layer left out 0.2.
    "fp8": Distance(relative_l2=6e-2, psnr_db=32.0, cosine=0.998),
    "int8": Distance(relative_l2=6e-2, psnr_db=32.0, cosine=0.998),
}


def run_gate(
    spec: StudentSpec,
    golden: Golden,
    load_program: LoadProgram,
    *,
    precision: Precision,
    batches: Sequence[int],
    device: str = "",
    joined: bool = False,
    progress: Progress = silent,
) -> GateReport:
    """Compare an engine with the student's golden outputs.

    Args:
        load_program: loads what would be published.
        batches: numbers of images that the engine was compiled for.
        device: what it runs on, for the report.
        joined: whether one compiled component serves all of them (`Backend.joins_batches`).

    Returns:
        The worst figures, all within their bars.

    Raises:
        GateError: says which component or trajectory, and how far it is.
    """
    component_bar, trajectory_bar = COMPONENT_BARS[precision], TRAJECTORY_BARS[precision]
    compiled = {name: component_batches(name, sorted(batches), joined=joined) for name in golden.components}
    num_checks = sum(map(len, compiled.values())) + len(golden.trajectories)
    done = 0
    figures: dict[str, list[Distance]] = {name: [] for name in golden.components}
    smallest: dict[str, Program] = {}
    for num_images in sorted(batches, reverse=True):  # the smallest is loaded last and stays for the trajectories
        for name, component in golden.components.items():
            if num_images not in compiled[name]:
                continue
            progress("gate", done, num_checks)
            smallest[name] = program = load_program(name, num_images)
            (output,) = component.outputs
            got = evaluate_rows(program, component.inputs)
            want = component.outputs[output]
            what = f"component {name} at batch {num_images}"
            figure = _compare(got, want, typical_norm(want), component_bar, what)
            figures[name].append(figure)
            done += 1
    trajectories = {}
    norm = typical_norm(np.concatenate([run.images for run in golden.trajectories]))
    for run in golden.trajectories:
        progress("gate", done, num_checks)
        images = run_components(
            spec,
            lambda name, inputs: evaluate_rows(smallest[name], inputs),
            steps=run.steps,
            guidance=run.guidance,
            seeds=run.seeds,
            labels=run.labels,
            tokens=run.tokens,
        )
        trajectories[run.name] = _compare(images, run.images, norm, trajectory_bar, f"trajectory {run.name}")
        done += 1
    progress("gate", num_checks, num_checks)
    return GateReport(
        component_bar=component_bar,
        trajectory_bar=trajectory_bar,
        components={name: worst(items) for name, items in figures.items()},
        trajectories=trajectories,
        device=device,
    )


def evaluate_rows(program: Program, inputs: Mapping[str, Array]) -> Array:
    """Any number of rows through a program of fixed batch: in chunks, the last one filled up by repeating its last row."""
    (output,) = program.outputs.values()
    num_rows, batch = len(next(iter(inputs.values()))), len(output)
    results = []
    for start in range(0, num_rows, batch):
        rows = np.minimum(np.arange(start, start + batch), num_rows - 1)
        for name, buffer in program.inputs.items():
            buffer[:] = inputs[name][rows]
        program.run()
        results.append(output[: num_rows - start].copy())
    return np.concatenate(results)


def _compare(got: Array, want: Array, norm: float, bar: Distance, what: str) -> Distance:
    num_bad = int(np.size(got) - np.isfinite(got).sum())
    if num_bad:
        raise GateError(
            f"{what}: {num_bad} of {np.size(got)} values are NaN or infinite; the student's are finite",
            code="gate-not-finite",
            hint="compile with --precision fp32",
            details={"what": what, "not_finite": num_bad},
        )
    return require_within(distance(got, want, norm), bar, what)


def require_within(figure: Distance, bar: Distance, what: str) -> Distance:
    """A distance that passes its bar.

    Raises:
        GateError: it does not; says what is too far, and how far.
    """
    if not within(figure, bar):
        raise GateError(
            f"{what} is too far from the student: relative L2 {figure.relative_l2:.3g} (at most {bar.relative_l2:g}), "
            f"PSNR {figure.psnr_db:.1f} dB (at least {bar.psnr_db:g}), cosine {figure.cosine:.6f} (at least {bar.cosine:g})",
            code="gate-failed",
            hint="compile with --precision fp32, or for another target",
            details={
                "what": what,
                "relative_l2": figure.relative_l2,
                "psnr_db": figure.psnr_db,
                "cosine": figure.cosine,
            },
        )
    return figure
