"""Join two students into one: a smaller network runs the first steps, the big one the rest (T-Stitch).

Both must have been distilled to the same plans of the same contract; distill feature_kd makes such smaller networks. The
result is a student: evaluate says what its images lost, bench what its engine won.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill_rt.cli.artifact_text import describe_student
from distill_rt.cli.outcome import Outcome
from distill_rt.cli.parser import add_force, positive

EXTRA = "export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("big", type=Path, metavar="BIG", help="student directory of the big network")
    parser.add_argument("small", type=Path, metavar="SMALL", help="student directory of the small network")
    parser.add_argument("--first", type=positive, default=1, metavar="K", help="evaluations of the small network (1)")
    parser.add_argument("--out", type=Path, required=True, metavar="STUDENT", help="the student directory to write")
    add_force(parser)


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.models.stitch import stitch_students

    stitch_students(args.big, args.small, args.out, first=args.first, force=args.force)
    description = describe_student(args.out)
    going_on = f"export it: distill-rt export {args.out} --out BUNDLE"
    return Outcome(data=description.data, text=f"{description.text}\n{going_on}")
