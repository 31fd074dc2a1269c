"""Try lossy passes on one plan of a student, on this machine; write its trajectory bundle with the one that earns its place.

Passes: reuse (modules keep what an earlier step computed), todo (fewer keys and values in wide attention), ptqd (a target's
rounding divided out of the step table), t-stitch (a smaller network for the first steps). One enters only if its images are
closer to the full plan than those of fewer steps in the same time; else the bundle is that of export --mode trajectory.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill_rt.cli.outcome import Outcome, table
from distill_rt.cli.parser import add_force, positive
from distill_rt.cli.progress import progress_bar
from distill_rt.core import codec
from distill_rt.core.lossy_report import LossyReport, Trial

EXTRA = "export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle of mode step: all plans of the student")
    parser.add_argument("--out", type=Path, required=True, metavar="TUNED", help="the trajectory bundle to write")
    parser.add_argument(
        "--try",
        dest="kinds",
        type=lambda text: text.split(","),
        default=["reuse", "todo"],
        metavar="reuse,todo",
        help="of reuse, todo, ptqd, t-stitch (reuse,todo)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="the plan (the contract's default)")
    parser.add_argument("--stitch", type=Path, metavar="SMALL", help="step bundle of a smaller network, for t-stitch")
    parser.add_argument("--target", default="auto", help="backend:device to measure on, or auto (auto)")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16"], help="of the arithmetic (the target's default)"
    )
    parser.add_argument("--batch", type=positive, default=1, help="images per call to measure with (1)")
    parser.add_argument("--threads", type=positive, help="threads of one call (every physical core)")
    add_force(parser)


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.export.lossy.tune import tune_bundle

    with progress_bar() as progress:
        report = tune_bundle(
            args.bundle,
            args.out,
            args.kinds,
            target=args.target,
            steps=args.steps,
            precision=args.precision,
            batch=args.batch,
            num_threads=args.threads,
            small=args.stitch,
            force=args.force,
            progress=progress,
        )
    options = f" --target {report.target} --precision {report.precision}"
    going_on = f"compile it: distill-rt compile {args.out}{options} --out ENGINE"
    text = "\n\n".join([lossy_text(report), going_on])
    return Outcome(data={"path": str(args.out), "report": codec.to_json(report)}, text=text)


def lossy_text(report: LossyReport) -> str:
    """The figures as a table, what was left out, and what entered."""
    rows = [_row(trial) for trial in [*report.plans, *report.trials]]
    head = f"{report.target} {report.precision}, batch {report.batch}, {report.num_images} images, {report.device}"
    measured = table(["variant", "ms", "time", "95 %", "distance", "same time", "verdict"], rows)
    skipped = [f"{kind} was not tried: {reason}" for kind, reason in report.skipped.items()]
    entered = f"entered: {report.chosen}" if report.chosen else "no lossy pass entered: the trajectory is exact"
    if report.confirmed is not None and not report.chosen:
        entered += f" ({report.confirmed.name} did not hold up on other images: {report.confirmed.reason})"
    return "\n".join([head, "", measured, *skipped, entered])


def _row(trial: Trial) -> list[str]:
    low, high = trial.time_interval
    verdict = "" if trial.accepted is None else f"{'yes' if trial.accepted else 'no'}: {trial.reason}"
    return [
        trial.name,
        f"{trial.milliseconds:.2f}",
        f"{trial.time_ratio:.2f}",
        f"{low:.2f} to {high:.2f}",
        f"{trial.distance:.4f}",
        "" if trial.alternative is None else f"{trial.alternative:.4f}",
        verdict,
    ]
