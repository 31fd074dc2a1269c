"""An artifact of two files, written and read back."""

from __future__ import annotations

from pathlib import Path

from distill_rt.core.directory import publish, write_file


def write(final: Path, text: str, *, force: bool = False) -> None:
    with publish(final, force=force) as partial:
        write_file(partial / "a", text.encode())
        (partial / "sub").mkdir()
        write_file(partial / "sub" / "b", text.encode())


def content(final: Path) -> tuple[str, str]:
    return (final / "a").read_text(), (final / "sub" / "b").read_text()
