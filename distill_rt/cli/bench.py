"""Time an engine through `Pipeline.generate`: latency, throughput, stages, loading, memory, overhead over its calls."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from distill_rt.cli.outcome import Outcome, pairs, size, table
from distill_rt.cli.parser import integers, positive, positives
from distill_rt.core.errors import UsageError

if TYPE_CHECKING:
    from distill_rt.bench.report import BenchReport

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
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw the latencies (.png, .svg or .pdf)")
    parser.add_argument("--out", type=Path, metavar="JSON", help="also write the report to a file")


def run(args: argparse.Namespace) -> Outcome:
    if args.plot is not None and args.plot.suffix not in _PLOT_SUFFIXES:
        raise UsageError(
            f"{args.plot} does not end in {', '.join(_PLOT_SUFFIXES)}", code="plot-format", hint="name it latency.png"
        )
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
    if args.out is not None:
        from distill_rt.runtime.atomic_file import atomic_file

        with atomic_file(args.out) as partial:
            partial.write_text(json.dumps(data, indent=1) + "\n")
    return Outcome(data=data, text=_text(report))


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
            *(f"{run.stages_ms[stage].p50:.3f}" for stage in ("network", "noise", "table")),
        ]
        for run in report.runs
    ]
    return f"{pairs(about)}\n\n{table(head, rows)}"
