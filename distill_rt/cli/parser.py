"""argparse with our errors: a wrong argument is a `UsageError`, so that it ends like every other one, in ``--json`` too."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from distill_rt.core.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` that raises, and that takes no abbreviations (they would change meaning with every release)."""

    def __init__(self, prog: str, description: str, epilog: str | None = None) -> None:
        super().__init__(
            prog=prog,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, code="bad-arguments", hint=f"{self.prog} --help")


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object, errors too")


def add_force(parser: argparse.ArgumentParser, what: str = "what stands at --out") -> None:
    parser.add_argument("--force", action="store_true", help=f"replace {what}")


def integers(text: str) -> list[int]:
    """argparse type: '1,4,16' -> [1, 4, 16]."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of integers such as 1,4,16") from None


def positive(text: str) -> int:
    """argparse type: an integer of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer of at least 1")
    return int(text)


def positives(text: str) -> list[int]:
    """argparse type: '1,4,16', each at least 1."""
    return [positive(part) for part in text.split(",")]


def once(settings: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Settings by name.

    Raises:
        UsageError: one of them twice, of which the first would be dropped.
    """
    names = [name for name, _ in settings]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"--set {name}= was given {names.count(name)} times", code="setting-twice", hint="give it once"
            )
    return dict(settings)


def setting(text: str) -> tuple[str, str]:
    """argparse type: 'name=value'."""
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form name=value")
    return name, value
