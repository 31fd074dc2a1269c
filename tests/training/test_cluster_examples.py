"""The examples for clusters call torchrun alone, with options that torchrun and distill-rt have."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser

from distill_rt.cli import train
from distill_rt.cli.parser import Parser, add_json
from distill_rt.training.recipes import RECIPES

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
NAMES = ["train.slurm", "train.sky.yaml"]


def script(name: str) -> str:
    """What bash runs."""
    text = (EXAMPLES / name).read_text()
    return "\n".join(text.split("\nrun: |\n")[1].splitlines()) if name.endswith(".yaml") else text


def commands(name: str) -> list[str]:
    lines = script(name).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def torchrun_words(name: str) -> list[str]:
    """The words after torchrun, every plain variable being 2."""
    line = next(line for line in commands(name) if "torchrun" in line)
    return shlex.split(re.sub(r'"\$\w+"', "2", line.partition("torchrun ")[2]))


@pytest.mark.parametrize("name", NAMES)
def test_every_option_exists(name):
    launched = get_args_parser().parse_args(torchrun_words(name))
    assert launched.module
    assert launched.training_script == "distill_rt.cli.main"
    command, *words = launched.training_script_args
    assert command == "train"
    parser = Parser("distill-rt train", "")
    train.add_arguments(parser)
    add_json(parser)
    given = parser.parse_args(words)
    assert given.recipe in RECIPES
    assert given.resume, "a run that was ended must go on"


@pytest.mark.parametrize("name", NAMES)
def test_nothing_but_torchrun_trains(name):
    *before, last = commands(name)
    assert last.startswith(("exec srun torchrun ", "torchrun "))
    assert all(line.startswith(("set -", "head=$(scontrol ")) for line in before)
    subprocess.run(["bash", "-n"], input=script(name), text=True, check=True)
