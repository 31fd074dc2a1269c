"""Show what a student, bundle or engine is: contract, plans, files, sizes, digests, gate figures. Reads the manifest only."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill_rt.cli.artifact_text import describe
from distill_rt.cli.outcome import Outcome

EXTRA = "cpu"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", type=Path, metavar="PATH", help="directory of a student, a bundle or an engine")


def run(args: argparse.Namespace) -> Outcome:
    return describe(args.path)
