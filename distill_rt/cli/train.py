"""Train a teacher by a recipe and write it as a student directory.

A killed run goes on with --resume; its checkpoint stands beside --out until training ends.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distill_rt.cli.outcome import Outcome, pairs
from distill_rt.cli.parser import add_force, once, positive, setting
from distill_rt.cli.progress import Progress, progress_bar
from distill_rt.core.errors import UsageError

EXTRA = "train"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "recipe", metavar="RECIPE", help="for example digits-teacher; distill-rt recipes lists them all"
    )
    add_training_arguments(parser, data="the recipe's")


def add_training_arguments(parser: argparse.ArgumentParser, *, data: str) -> None:
    """What `train` and `distill` have in common; `data` says what they train on without --data."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the student directory to write")
    parser.add_argument(
        "--data",
        metavar="DATA",
        help=f"digits, shapes, grid25, a directory of images, or hf:NAME ({data}; docs/training.md)",
    )
    parser.add_argument(
        "--autoencoder",
        type=Path,
        metavar="DIR",
        help="diffusers autoencoder that makes latents of the images (docs/training.md)",
    )
    parser.add_argument(
        "--latents", type=Path, metavar="DIR", help="keep the latents there for later runs (only while this one lasts)"
    )
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
    parser.add_argument(
        "--checkpoint-every",
        type=positive,
        default=250,
        metavar="STEPS",
        help="training steps between two checkpoints (250)",
    )
    parser.add_argument(
        "--keep-every",
        type=positive,
        default=0,
        metavar="STEPS",
        help="keep weights so often for distill-rt combine (none)",
    )
    parser.add_argument(
        "--accumulate", type=positive, default=1, metavar="PARTS", help="take a batch in so many parts: less memory (1)"
    )
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), default="fp32", help="of the networks' evaluations; weights stay fp32"
    )
    parser.add_argument("--compile", action="store_true", help="run the networks through torch.compile")
    parser.add_argument(
        "--checkpoint-activations",
        action="store_true",
        help="compute the inside of blocks again in the backward pass: less memory, more time",
    )
    parser.add_argument(
        "--ema-power",
        type=float,
        metavar="GAMMA",
        help="average the weights by a power function of time (6.94 is usual), not as the method does",
    )
    parser.add_argument(
        "--parallel",
        choices=("none", "ddp", "fsdp"),
        default="ddp",
        help="of several processes: ddp copies the weights, fsdp shards them (ddp; docs/training.md)",
    )
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to compute (auto: a GPU if there is one)",
    )
    parser.add_argument(
        "--journal", type=Path, metavar="DIR", help="write metrics.jsonl and config.json there (docs/training.md)"
    )
    parser.add_argument(
        "--journal-every", type=positive, metavar="STEPS", help="training steps between two lines of it (10)"
    )
    parser.add_argument(
        "--sample-every", type=positive, metavar="STEPS", help="write a sheet of samples there so often"
    )
    parser.add_argument("--tensorboard", action="store_true", help="write the same for TensorBoard")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint beside --out")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the full configuration, write nothing"
    )
    add_force(parser, "what stands at --out, and an unfinished run")


def training_options(args: argparse.Namespace, progress: Progress) -> dict[str, Any]:
    """The arguments of `add_training_arguments`, by their names in `distill_rt.training.options`."""
    from distill_rt.training.journal import JournalOptions

    wanted = {"every": args.journal_every, "sample_every": args.sample_every, "tensorboard": args.tensorboard or None}
    given = {name: value for name, value in wanted.items() if value is not None}
    if given and args.journal is None:
        raise UsageError(
            "--journal-every, --sample-every and --tensorboard need --journal DIR",
            code="journal-missing",
            hint="say where to write",
        )
    return {
        "journal": None if args.journal is None else JournalOptions(directory=args.journal, **given),
        "data": args.data,
        "autoencoder": args.autoencoder,
        "latents": args.latents,
        "settings": once(args.settings),
        "seed": args.seed,
        "resume": args.resume,
        "force": args.force,
        "checkpoint_every": args.checkpoint_every,
        "keep_every": args.keep_every,
        "accumulate": args.accumulate,
        "precision": args.precision,
        "compile": args.compile,
        "checkpoint_activations": args.checkpoint_activations,
        "ema_power": args.ema_power,
        "parallel": args.parallel,
        "device": args.device,
        "dry_run": args.dry_run,
        "progress": progress,
    }


def training_outcome(made: Mapping[str, Any], *, dry_run: bool, going_on: str) -> Outcome:
    """What a run, or a dry one, made."""
    if not made:
        raise SystemExit(0)  # one of several processes: the first one speaks
    if dry_run:
        return Outcome(data=made, text=_configuration_text(made))
    lines = [pairs({key: value for key, value in made.items() if key != "notes"})]
    lines += [f"note: {note}" for note in made["notes"]]
    return Outcome(data=made, text="\n".join([*lines, going_on]))


def _configuration_text(made: Mapping[str, Any]) -> str:
    """The configuration with nested values as ``settings.steps``; step tables as the numbers of steps they are for."""
    flat: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if prefix == "contract.plans":
            flat[prefix] = " ".join(value)
        elif isinstance(value, Mapping) and value:
            for key, inner in value.items():
                add(f"{prefix}.{key}" if prefix else key, inner)
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            for index, inner in enumerate(value):
                add(f"{prefix}.{index}", inner)
        else:
            flat[prefix] = "none" if value is None else value

    add("", made)
    return f"{pairs(flat)}\nnothing was written; --json prints the step tables, too"


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.training.run import train

    with progress_bar() as progress:
        made = train(args.recipe, args.out, **training_options(args, progress))
    going_on = f"distill it: distill-rt distill progressive --teacher {args.out} --steps 4 --out STUDENT"
    return training_outcome(made, dry_run=args.dry_run, going_on=going_on)
