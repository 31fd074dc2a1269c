"""Measure a student against its teacher and the data it learned from.

Every measure stands beside naive baselines at the same number of steps; docs/methods.md explains them. The exit code is 0 also
where a student does not pass: that is a finding, not a failure.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_rt.cli.outcome import Outcome, table
from distill_rt.cli.parser import positive, positives
from distill_rt.cli.progress import progress_bar
from distill_rt.cli.prompts import add_prompts, read_prompts

EXTRA = "train"

_NOT_MEASURES = ("nfe", "steps", "passed", "failures", "floor", "baselines")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", type=Path, metavar="STUDENT", help="student directory")
    parser.add_argument("--teacher", type=Path, required=True, metavar="DIR", help="its teacher, the yardstick")
    parser.add_argument("--nfe", type=positives, metavar="1,2,4", help="numbers of steps (all of the contract)")
    parser.add_argument("--samples", type=positive, default=2000, help="images per sample set (2000)")
    parser.add_argument(
        "--guidance", type=float, metavar="W", help="guidance scale (the one of the student's contract)"
    )
    add_prompts(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the sampled noise (0)")


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.training.evaluate import evaluate

    prompts = None if args.prompts is None else read_prompts(args.prompts)
    with progress_bar() as progress:
        report = evaluate(
            args.student,
            args.teacher,
            nfe=args.nfe,
            num_samples=args.samples,
            guidance=args.guidance,
            prompts=prompts,
            seed=args.seed,
            progress=progress,
        )
    return Outcome(data=report, text=_text(report["rows"]))


def _text(rows: list[Mapping[str, Any]]) -> str:
    """One line per number of steps, its baselines below it, and why a row did not pass."""
    measures = [name for name in rows[0] if name not in _NOT_MEASURES and rows[0][name] is not None]
    lines = []
    for row in rows:
        verdict = "passed" if row["passed"] else "not passed"
        lines.append([f"student, {row['steps']} steps", *(_figure(row[name]) for name in measures), verdict])
        for name, values in {"floor": row["floor"], **row["baselines"]}.items():
            lines.append([f"  {name}", *(_figure(values.get(measure)) for measure in measures), ""])
    reasons = [f"{row['steps']} steps, {name}: {why}" for row in rows for name, why in row["failures"].items()]
    return "\n".join([table(["", *measures, ""], lines), *reasons])


def _figure(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
