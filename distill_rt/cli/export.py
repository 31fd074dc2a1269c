"""Write a student as a bundle: ONNX graphs, and golden outputs to check engines with.

Mode step: one graph per network, every plan of the contract, previews on the way. Mode trajectory: all steps of one plan, with
guidance and the conversion to pixels, in a single graph that any ONNX runtime runs without our code.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill_rt.cli.artifact_text import describe_bundle
from distill_rt.cli.outcome import Outcome
from distill_rt.cli.parser import add_force
from distill_rt.cli.progress import progress_bar

EXTRA = "export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("student", type=Path, metavar="STUDENT", help="student directory")
    parser.add_argument("--out", type=Path, required=True, metavar="BUNDLE", help="the bundle directory to write")
    parser.add_argument("--mode", choices=["step", "trajectory"], default="step", help="see above (step)")
    parser.add_argument("--steps", type=int, metavar="N", help="the plan of a trajectory (the contract's default)")
    add_force(parser)


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.export import export_student

    with progress_bar() as progress:
        export_student(args.student, args.out, mode=args.mode, steps=args.steps, force=args.force, progress=progress)
    description = describe_bundle(args.out)
    going_on = f"compile it: distill-rt compile {args.out} --target auto --out ENGINE"
    return Outcome(data=description.data, text=f"{description.text}\n{going_on}")
