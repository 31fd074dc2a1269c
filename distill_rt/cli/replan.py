"""Give a consistency student other times to be evaluated at, without training it again.

A student of consistency, lcm, ect, consistency_training, scm or rcm knows every time. Plans of N evaluations add fresh noise
at the times (1 - i/N)^POWER: a higher power keeps more of what the first evaluation found. Measure both with evaluate.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill_rt.cli.outcome import Outcome, table
from distill_rt.cli.parser import add_force, positive

EXTRA = "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", type=Path, metavar="STUDENT", help="student directory")
    parser.add_argument("--power", type=float, help="of the times; 1 is uniform (the student's)")
    parser.add_argument("--steps", type=positive, help="evaluations of the largest plan (the student's)")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the student directory to write")
    add_force(parser)


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.training.replan import replan

    made = replan(args.student, args.out, power=args.power, steps=args.steps, force=args.force)
    rows = [[steps, ", ".join(f"{t:g}" for t in times)] for steps, times in made["plans"].items()]
    measure = f"measure it: distill-rt evaluate {args.out} --teacher TEACHER"
    return Outcome(data=made, text=f"{table(['steps', 'times'], rows)}\n{measure}")
