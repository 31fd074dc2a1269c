"""Single files that appear whole or not at all; `distill_rt.core.directory` does the same for directories."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from distill_rt.core.directory import resource_errors


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
