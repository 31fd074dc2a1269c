"""Combine the weights that a training run kept (--keep-every) into a student that is nearer to its teacher (LCSC).

Coefficients are searched by the samples' distance to the teacher's; the result is measured on other noise beside the plain
average, the last weights and the student as it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill_rt.cli.outcome import Outcome, table
from distill_rt.cli.parser import add_force, positive
from distill_rt.cli.progress import progress_bar
from distill_rt.cli.prompts import add_prompts, read_prompts

EXTRA = "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", type=Path, metavar="STUDENT", help="student directory that the run made")
    parser.add_argument("--teacher", type=Path, required=True, metavar="DIR", help="its teacher, the yardstick")
    parser.add_argument("--weights", type=Path, metavar="DIR", help="kept weights (STUDENT.weights)")
    parser.add_argument("--steps", type=positive, help="the plan whose samples are compared (the default one)")
    add_prompts(parser)
    parser.add_argument("--samples", type=positive, default=1000, help="images of one combination (1000)")
    parser.add_argument("--generations", type=positive, default=20, help="of the search (20)")
    parser.add_argument("--population", type=positive, default=16, help="combinations of a generation (16)")
    parser.add_argument("--seed", type=int, default=0, help="of the search (0)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the student directory to write")
    add_force(parser)


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.training.combine import combine

    prompts = None if args.prompts is None else read_prompts(args.prompts)
    with progress_bar() as progress:
        made = combine(
            args.student,
            args.teacher,
            args.out,
            weights=args.weights,
            steps=args.steps,
            prompts=prompts,
            num_samples=args.samples,
            generations=args.generations,
            population=args.population,
            seed=args.seed,
            force=args.force,
            progress=progress,
        )
    names = list(made["held_out"])
    rows = [[noise, *(f"{made[noise][name]:.4f}" for name in names)] for noise in ("searched", "held_out")]
    verdict = "nearer than" if made["beats_average"] else "no nearer than"
    text = f"{table(['distance', *names], rows)}\n{verdict} the plain average on noise that the search has not seen"
    return Outcome(data=made, text=f"{text}\nmeasure it: distill-rt evaluate {args.out} --teacher {args.teacher}")
