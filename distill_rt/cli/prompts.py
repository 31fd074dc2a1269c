"""A file of prompts, one in a line."""

from __future__ import annotations

import argparse
from pathlib import Path

from distill_rt.core.errors import UsageError


def add_prompts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="a prompt in each line, given in turn (captions of shapes, where the teacher knows these)",
    )


def read_prompts(file: Path) -> list[str]:
    """The lines of a file; empty ones are left out.

    Raises:
        UsageError: no such file, no text in UTF-8, or nothing in it.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise UsageError(f"cannot read the prompts in {file}: {why}", code="prompts-unreadable") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise UsageError(f"there is no prompt in {file}", code="prompts-empty", hint="write one in each line")
    return prompts
