"""Train a teacher by a recipe and write it as a student directory.

A killed run goes on with --resume; its checkpoint stands beside --out until training ends.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from distill_rt.cli.outcome import Outcome, pairs
from distill_rt.cli.parser import add_force, setting
from distill_rt.cli.progress import progress_bar

EXTRA = "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="for example digits-teacher; an unknown one lists them all")
    add_training_arguments(parser)


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """What `train` and `distill` have in common."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the student directory to write")
    parser.add_argument(
        "--set",
        type=setting,
        action="append",
        default=[],
        dest="settings",
        metavar="NAME=VALUE",
        help="change a setting; may be given again; an unknown one lists them all",
    )
    parser.add_argument("--seed", type=int, default=0, help="of initial weights, data order and training noise (0)")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint beside --out")
    add_force(parser, "what stands at --out, and an unfinished run")


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.training.run import train

    with progress_bar() as progress:
        made = train(
            args.recipe,
            args.out,
            settings=dict(args.settings),
            seed=args.seed,
            resume=args.resume,
            force=args.force,
            progress=progress,
        )
    going_on = f"distill it: distill-rt distill progressive --teacher {args.out} --steps 4 --out STUDENT"
    return Outcome(data=made, text=f"{pairs(made)}\n{going_on}")
