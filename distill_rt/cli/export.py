"""Write a student as a bundle: one ONNX graph per network, and golden outputs to check engines with."""

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
    parser.add_argument("--mode", choices=["step"], default="step", help="step: one network evaluation per call")
    add_force(parser)


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.export import export_student

    with progress_bar() as progress:
        export_student(args.student, args.out, mode=args.mode, force=args.force, progress=progress)
    description = describe_bundle(args.out)
    going_on = f"compile it: distill-rt compile {args.out} --target auto --out ENGINE"
    return Outcome(data=description.data, text=f"{description.text}\n{going_on}")
