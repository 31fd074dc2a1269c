"""Single files that appear whole or not at all; `distill_rt.core.directory` does the same for directories."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from distill_rt.core.directory import resource_errors
from distill_rt.core.errors import UsageError


def check_file(path: Path) -> None:
    """Refuse, before any work is done, a path that no file can be written to.

    Raises:
        UsageError: a directory.
        ResourceError: its directory cannot be made or written.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a directory", code="output-is-directory", hint="give the name of a file")
    with resource_errors(path):
        parent = _nearest_existing(path.parent)
        if not parent.is_dir():
            raise NotADirectoryError(20, f"{parent} is a file", str(parent))
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(parent))


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a name beside `path` to write to; it is synced and renamed to `path` if the block ends without an exception.

    The name ends like `path`, for writers that go by the suffix. Missing directories are made.

    Raises:
        ResourceError: the disk is full or not writable.
    """
    with resource_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.stem}.{os.getpid()}-{secrets.token_hex(4)}.partial{path.suffix}")
        try:
            yield partial
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _nearest_existing(directory: Path) -> Path:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory
