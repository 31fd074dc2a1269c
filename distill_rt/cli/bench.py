"""Time an engine through `Pipeline.generate`: latency, throughput, stages, loading, memory, overhead over its calls.

With --compare-modes, time it and other engines of the same student in turns (step and trajectory mode, precisions), and say how
far their images are from its own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_rt.cli.outcome import Outcome, pairs, size, table
from distill_rt.cli.parser import integers, positive, positives
from distill_rt.core import codec
from distill_rt.core.atomic_file import atomic_file, check_file
from distill_rt.core.errors import UsageError

if TYPE_CHECKING:
    from distill_rt.bench.report import BenchReport, RunReport

EXTRA = "cpu"

_PLOT_SUFFIXES = (".png", ".svg", ".pdf")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, metavar="ENGINE", help="engine directory")
    parser.add_argument(
        "--num-images", type=positives, metavar="1,4,16", help="images per request, one run each (1, compiled batches)"
    )
    parser.add_argument("--label", type=integers, metavar="3 or 0,1,2", help="labels of every request (0)")
    parser.add_argument("--prompt", action="append", metavar="TEXT", help="prompts of every request (a short one)")
    parser.add_argument("--steps", type=int, metavar="N", help="one of the contract's plans (its default)")
    parser.add_argument("--guidance", type=float, metavar="W", help="guidance scale (the contract's default)")
    parser.add_argument("--seed", type=int, default=0, help="of every request (0)")
    parser.add_argument("--requests", type=positive, default=100, metavar="N", help="measured requests per run (100)")
    parser.add_argument("--warmup", type=positive, default=10, metavar="N", help="requests before them (10)")
    parser.add_argument(
        "--compare-modes",
        nargs="+",
        type=Path,
        metavar="ENGINE",
        help="other engines of this student, ENGINE is the reference",
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the latencies (.png, .svg or .pdf)")
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write the report to a file")


def run(args: argparse.Namespace) -> Outcome:
    if args.plot is not None and args.plot.suffix not in _PLOT_SUFFIXES:
        raise UsageError(
            f"{args.plot} does not end in {', '.join(_PLOT_SUFFIXES)}", code="plot-format", hint="name it latency.png"
        )
    for path in (args.out, args.plot):
        if path is not None:
            check_file(path)
    if args.compare_modes is not None:
        return _compare(args)
    from distill_rt.bench.harness import bench_engine

    report = bench_engine(
        args.engine,
        num_images=args.num_images,
        labels=args.label,
        prompts=args.prompt,
        steps=args.steps,
        guidance=args.guidance,
        seed=args.seed,
        num_requests=args.requests,
        num_warmup=args.warmup,
    )
    data = report.to_json()
    if args.plot is not None:
        from distill_rt.bench.plot import plot_latency

        plot_latency(report, args.plot)
        data["plot"] = str(args.plot)
    _write(args.out, data)
    return Outcome(data=data, text=_text(report))


def _write(path: Path | None, data: dict[str, Any]) -> None:
    if path is None:
        return
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(data, indent=1) + "\n")


def _compare(args: argparse.Namespace) -> Outcome:
    if args.plot is not None or (args.num_images is not None and len(args.num_images) > 1):
        raise UsageError(
            "--compare-modes draws no plot, and takes one number of images",
            code="bad-arguments",
            hint="leave --plot out, and give one number to --num-images",
        )
    from distill_rt.bench.compare import compare_engines

    comparison = compare_engines(
        [args.engine, *args.compare_modes],
        num_images=1 if args.num_images is None else args.num_images[0],
        labels=args.label,
        prompts=args.prompt,
        steps=args.steps,
        guidance=args.guidance,
        seed=args.seed,
        num_rounds=args.requests,
        num_warmup=args.warmup,
    )
    data: dict[str, Any] = codec.to_json(comparison)
    _write(args.out, data)
    machine = comparison.machine
    about = {
        "machine": f"{machine.processor}, {machine.cores} cores",
        "requests": f"{comparison.num_rounds} of {comparison.num_images} images for each engine, in turns",
    }
    rows = [
        [
            variant.engine,
            variant.target,
            variant.mode,
            variant.precision,
            variant.steps,
            f"{variant.latency_ms.p50:.3f}",
            f"{variant.latency_ms.p90:.3f}",
            f"{variant.speedup:.2f}x",
            f"{variant.relative_l2:.2e}",
            f"{variant.psnr_db:.1f}",
            f"{variant.equal:.2%}",
        ]
        for variant in comparison.variants
    ]
    head = [
        "engine",
        "target",
        "mode",
        "precision",
        "steps",
        "p50 ms",
        "p90 ms",
        "speed",
        "relative L2",
        "PSNR dB",
        "equal",
    ]
    return Outcome(data=data, text=f"{pairs(about)}\n\n{table(head, rows)}")


def _median(run: RunReport, stage: str) -> str:
    """A trajectory engine has no stage of its own for the table."""
    return f"{run.stages_ms[stage].p50:.3f}" if stage in run.stages_ms else "-"


def _text(report: BenchReport) -> str:
    from distill_rt.bench.report import OVERHEAD_BAR_MS

    memory = None if report.peak_memory_bytes is None else size(report.peak_memory_bytes)
    overhead, bar = report.overhead_ms, OVERHEAD_BAR_MS
    verdict = "" if overhead is None else f"bar {bar} ms: {'met' if overhead <= bar else 'NOT met'}"
    about = {
        "engine": f"{report.engine} ({report.target}, {report.precision}, {report.num_threads} threads)",
        "machine": f"{report.machine.processor}, {report.machine.cores} cores",
        "load": f"{report.load.load_ms:.0f} ms for batches {', '.join(map(str, report.batches))}",
        "peak memory": memory,
        "overhead": None if overhead is None else f"{overhead:.3f} ms per request of one image ({verdict})",
    }
    head = [
        "images",
        "steps",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "images/s",
        "overhead ms",
        "network ms",
        "noise ms",
        "table ms",
    ]
    rows = [
        [
            run.num_images,
            run.steps,
            *(f"{value:.3f}" for value in (run.latency_ms.p50, run.latency_ms.p90, run.latency_ms.p99)),
            f"{run.images_per_s:.1f}",
            f"{run.overhead_ms.p50:.3f}",
            *(_median(run, stage) for stage in ("network", "noise", "table")),
        ]
        for run in report.runs
    ]
    return f"{pairs(about)}\n\n{table(head, rows)}"
