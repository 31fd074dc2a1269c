"""Distil a teacher into a student of few steps.

docs/methods.md has a card for every method: idea, what it needs, the contract it makes, measured quality. feature_kd
and bk_sdm make networks smaller. A killed run goes on with --resume.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill_rt.cli.outcome import Outcome
from distill_rt.cli.parser import positive
from distill_rt.cli.progress import progress_bar
from distill_rt.cli.train import add_training_arguments, training_options, training_outcome

EXTRA = "train"
METHODS = (
    "kd",
    "progressive",
    "rcfd",
    "tract",
    "sfd",
    "rectified_flow",
    "boot",
    "consistency",
    "lcm",
    "pcm",
    "tcd",
    "consistency_training",
    "ect",
    "ctm",
    "shortcut",
    "catch_up",
    "imm",
    "meanflow",
    "scm",
    "rcm",
    "dmd",
    "dmd2",
    "vsd",
    "sid",
    "tdm",
    "ladd",
    "guidance",
    "dice",
    "gits",
    "bespoke",
    "feature_kd",
    "bk_sdm",
)
"""What `training.methods.METHODS` holds, in its order: help must not wait for torch."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", metavar="METHOD", help=", ".join(METHODS))
    parser.add_argument("--teacher", type=Path, required=True, metavar="DIR", help="student directory of the teacher")
    parser.add_argument(
        "--steps", type=positive, help="steps of the student (4; feature_kd, bk_sdm: all of the teacher's plans)"
    )
    add_training_arguments(parser, data="the teacher's")


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.training.run import distill

    with progress_bar() as progress:
        made = distill(args.method, args.teacher, args.out, steps=args.steps, **training_options(args, progress))
    going_on = (
        f"measure it: distill-rt evaluate {args.out} --teacher {args.teacher}\n"
        f"export it:  distill-rt export {args.out} --out BUNDLE"
    )
    return training_outcome(made, dry_run=args.dry_run, going_on=going_on)
