"""Directories that appear whole or not at all.

An artifact is written beside its final name, synced, its manifest last, and renamed into place. A reader sees the old
directory or the new one, never a mixture, and a failed or interrupted writer leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from distill_rt.core.errors import DistillError, ResourceError, UsageError

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


@contextlib.contextmanager
def publish(final: Path, *, force: bool) -> Iterator[Path]:
    """Yield a fresh directory beside `final`; rename it to `final` if the block ends without an exception.

    Args:
        final: where the artifact shall stand.
        force: replace what stands there now; otherwise an existing path is refused.

    Raises:
        UsageError: `final` exists and `force` is false (before any work is done).
        ResourceError: the disk is full, read-only or not writable.
    """
    refuse_existing(final, force=force)
    with resource_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        partial = final.parent / f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
        partial.mkdir()
        try:
            yield partial
            _sync_tree(partial)
            _replace(partial, final, force=force)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def refuse_existing(final: Path, *, force: bool) -> None:
    """Raise `UsageError` if `final` exists and may not be replaced."""
    if force and (final.is_symlink() or (final.exists() and not final.is_dir())):
        raise UsageError(
            f"{final} is a file or a link, not a directory of ours",
            code="output-not-a-directory",
            hint="choose another --out",
        )
    if not force and (final.exists() or final.is_symlink()):
        raise UsageError(
            f"{final} exists already", code="output-exists", hint="choose another --out, or pass --force to replace it"
        )


@contextlib.contextmanager
def resource_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or missing permission into `ResourceError`; everything else passes."""
    try:
        yield
    except DistillError:
        raise
    except OSError as error:
        what = {
            errno.ENOSPC: ("disk-full", "free some space, or choose another place"),
            errno.EDQUOT: ("disk-full", "your quota is used up: free some space, or choose another place"),
            errno.EACCES: ("not-writable", "check the permissions, or choose another place"),
            errno.EPERM: ("not-writable", "check the permissions, or choose another place"),
            errno.EROFS: ("not-writable", "the file system is read-only: choose another place"),
            errno.ENOTDIR: ("not-writable", "a part of the path is a file: choose another place"),
        }.get(error.errno or 0)
        if what is None:
            raise
        raise ResourceError(f"cannot write {path}: {error.strerror}", code=what[0], hint=what[1]) from error


def write_file(path: Path, data: bytes) -> None:
    """Write and sync one file."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_tree(directory: Path) -> None:
    for root, _, names in os.walk(directory):
        for name in [*names, "."]:
            descriptor = os.open(os.path.join(root, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _replace(partial: Path, final: Path, *, force: bool) -> None:
    refuse_existing(final, force=force)
    if final.exists() and _exchange(partial, final):
        return  # what stood at `final` now bears the partial name; the caller's clean-up removes it
    if final.exists():
        aside = partial.with_suffix(".old")
        os.rename(final, aside)
        os.rename(partial, final)
        shutil.rmtree(aside, ignore_errors=True)
        return
    os.rename(partial, final)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two directories atomically (Linux renameat2); False where the system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)
