"""Latency as a picture: one histogram per request size, with its percentiles."""

from __future__ import annotations

from pathlib import Path

from distill_rt.bench.report import BenchReport
from distill_rt.core.atomic_file import atomic_file
from distill_rt.core.optional import require


def plot_latency(report: BenchReport, path: Path) -> None:
    """Write a PNG (or what the suffix says).

    Raises:
        TargetError: matplotlib is not installed.
        ResourceError: the disk is full or not writable.
    """
    require("matplotlib", extra="bench")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 2.2 * len(report.runs) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(report.runs), 1, squeeze=False)[:, 0]
    for axis, run in zip(axes, report.runs, strict=True):
        axis.hist(run.samples_ms, bins=40, color="#4878a8")
        for name, colour in (("p50", "black"), ("p90", "#c07000"), ("p99", "#b02020")):
            value = getattr(run.latency_ms, name)
            axis.axvline(value, color=colour, linewidth=1.2, label=f"{name} {value:.2f} ms")
        images = "1 image" if run.num_images == 1 else f"{run.num_images} images"
        axis.set_title(f"{images}, {run.steps} steps: {run.images_per_s:.0f} images/s", loc="left", fontsize=10)
        axis.set_ylabel("requests")
        axis.legend(frameon=False, fontsize=8)
    axes[-1].set_xlabel("latency of a request, ms")
    figure.suptitle(f"{report.target} {report.precision}, {report.machine.processor}", fontsize=10)
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=120)
