"""Directories that appear whole or not at all.

An artifact is written beside its final name, synced, its manifest last, and renamed into place. A reader sees the old
directory or the new one, never a mixture, and a failed or interrupted writer leaves nothing behind. What a killed writer
(SIGKILL, power cut) left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from distill_rt.core.errors import DistillError, ResourceError, UsageError

_RENAME_EXCHANGE = 2
_AT_FDCWD = -100
_ABANDONED_AFTER_S = 10.0
"""Between creating its directory and locking it a writer needs microseconds."""

_FULL = ("disk-full", "free some space, or choose another place")
_PERMISSIONS = ("not-writable", "check the permissions, or choose another place")
_REASONS = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: ("disk-full", "your quota is used up: free some space, or choose another place"),
    errno.EFBIG: ("disk-full", "the file is larger than the system allows (ulimit -f): raise the limit"),
    errno.EACCES: _PERMISSIONS,
    errno.EPERM: _PERMISSIONS,
    errno.EROFS: ("not-writable", "the file system is read-only: choose another place"),
    errno.EEXIST: ("not-writable", "a file stands where a directory is needed: choose another place"),
    errno.EISDIR: ("not-writable", "a directory stands where a file is needed: choose another place"),
    errno.ENOTDIR: ("not-writable", "a part of the path is a file: choose another place"),
    errno.ELOOP: ("not-writable", "a part of the path is a link to itself: choose another place"),
    errno.ENAMETOOLONG: ("not-writable", "the name is too long: choose another one"),
    errno.EBUSY: ("not-writable", "another file system is mounted there: choose another place"),
    errno.EIO: ("disk-failure", "the disk reports an error: choose another place"),
}


@contextlib.contextmanager
def publish(final: Path, *, force: bool, ours: str | None = None) -> Iterator[Path]:
    """Yield a fresh directory beside `final`; rename it to `final` if the block ends without an exception.

    Args:
        final: where the artifact shall stand.
        force: replace what stands there now; otherwise an existing path is refused.
        ours: see `refuse_existing`.

    Raises:
        UsageError: `final` may not be written (before any work is done).
        ResourceError: the disk is full, read-only or not writable.
    """
    refuse_existing(final, force=force, ours=ours)
    with resource_errors(final), _partial_directory(final) as partial:
        yield partial
        _sync_tree(partial)
        _replace(partial, final, force=force)
        _sync(final.parent)


def check_writable(final: Path) -> None:
    """Raise `ResourceError` now if a later `publish` to `final` could not even create its directory."""
    with resource_errors(final), _partial_directory(final):
        pass


def refuse_existing(final: Path, *, force: bool, ours: str | None = None) -> None:
    """Raise `UsageError` if `final` exists and may not be replaced.

    Args:
        ours: name of the manifest that a directory of ours holds; with `force`, a directory that holds other files and no
            such manifest is refused too, because replacing it would delete what is not ours.
    """
    if final.name in ("", ".."):
        raise UsageError(
            f"{str(final)!r} is no name for a new directory", code="output-not-a-directory", hint="choose another --out"
        )
    with resource_errors(final):
        exists, is_link = final.exists() or final.is_symlink(), final.is_symlink()
        is_directory = final.is_dir() and not is_link
        foreign = ours is not None and is_directory and not (final / ours).exists() and any(final.iterdir())
    if exists and not force:
        raise UsageError(
            f"{final} exists already", code="output-exists", hint="choose another --out, or pass --force to replace it"
        )
    if exists and not is_directory:
        raise UsageError(
            f"{final} is a {'link' if is_link else 'file'}, not a directory of ours",
            code="output-not-a-directory",
            hint="choose another --out",
        )
    if foreign:
        raise UsageError(
            f"{final} holds files that are not ours (there is no {ours})",
            code="output-not-ours",
            hint="choose another --out, or remove it yourself",
        )


@contextlib.contextmanager
def resource_errors(path: Path) -> Iterator[None]:
    """Turn a full disk or missing permission into `ResourceError`; everything else passes."""
    try:
        yield
    except DistillError:
        raise
    except OSError as error:
        if error.errno not in _REASONS:
            raise
        code, hint = _REASONS[error.errno]
        raise ResourceError(f"cannot write {path}: {error.strerror}", code=code, hint=hint) from error


def write_file(path: Path, data: bytes) -> None:
    """Write and sync one file."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _partial_directory(final: Path) -> Iterator[Path]:
    """A new locked directory beside `final`; gone at the end unless it was renamed, with the parents made for it."""
    missing = [parent for parent in final.parents if not parent.exists()]
    partial = final.parent / f".{final.name}.{os.getpid()}-{secrets.token_hex(4)}.partial"
    done = False
    with contextlib.ExitStack() as stack:
        try:
            try:
                final.parent.mkdir(parents=True, exist_ok=True)
            except FileExistsError as error:
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error
            _discard_abandoned(final)
            partial.mkdir()
            stack.enter_context(_locked(partial))
            yield partial
            done = final.exists()
        finally:
            shutil.rmtree(partial, ignore_errors=True)  # after an exchange, this is what stood at `final`
            for parent in [] if done else missing:
                with contextlib.suppress(OSError):  # not empty: somebody else uses it
                    parent.rmdir()


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[bool]:
    """Hold the directory's advisory lock until the end, or the death, of this process; False if another one holds it."""
    try:
        import fcntl
    except ImportError:  # Windows: leftovers of killed writers stay
        yield False
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError:  # held by its writer, or a file system without locks
            locked = False
        yield locked
    finally:
        os.close(descriptor)


def _discard_abandoned(final: Path) -> None:
    """Remove what killed writers of the same `final` left: their directories are older than a moment and not locked."""
    for path in final.parent.iterdir():
        if path.name.startswith(f".{final.name}.") and path.name.endswith((".partial", ".old")):
            with contextlib.suppress(OSError):  # another writer is clearing up, too
                old = time.time() - path.stat().st_mtime > _ABANDONED_AFTER_S
                with _locked(path) as locked:
                    if old and locked:
                        shutil.rmtree(path, ignore_errors=True)


def _sync_tree(directory: Path) -> None:
    for root, _, names in os.walk(directory):
        for name in [*names, "."]:
            _sync(Path(root, name))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _replace(partial: Path, final: Path, *, force: bool) -> None:
    refuse_existing(final, force=force)
    if force and _exchange(partial, final):
        return  # what stood at `final` now bears the partial name; the caller's clean-up removes it
    try:
        os.rename(partial, final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        refuse_existing(final, force=force)  # another writer was faster
        _step_aside(partial, final)


def _step_aside(partial: Path, final: Path) -> None:
    """Replace a directory where the system cannot exchange two: for a moment `final` does not exist."""
    aside = partial.with_suffix(".old")
    os.rename(final, aside)
    try:
        os.rename(partial, final)
    except OSError:
        os.rename(aside, final)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _exchange(a: Path, b: Path) -> bool:
    """Swap two directories atomically (Linux renameat2); False where the system cannot, or `b` does not exist."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError, TypeError):  # TypeError: Windows has no process-wide library
        return False
    return bool(renameat2(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0)
