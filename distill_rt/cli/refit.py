"""Put the weights of another bundle into a compiled engine: the same network, other numbers, no build.

The engine must have been compiled with --refittable (TensorRT) and stays as it is. The new engine passes the gate with the
bundle's golden outputs, as after compiling. For a LoRA: merge it into the student, export, refit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill_rt.cli.artifact_text import describe_engine
from distill_rt.cli.outcome import Outcome
from distill_rt.cli.parser import add_force
from distill_rt.cli.progress import progress_bar

EXTRA = "tensorrt"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("engine", type=Path, metavar="ENGINE", help="engine that was compiled with --refittable")
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle with the new weights")
    parser.add_argument("--out", type=Path, required=True, metavar="NEW", help="the engine directory to write")
    add_force(parser)


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.export.refit import refit_engine

    with progress_bar() as progress:
        refit_engine(args.engine, args.bundle, args.out, force=args.force, progress=progress)
    return describe_engine(args.out)
