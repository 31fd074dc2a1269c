"""The engine cache: whole engine directories by fingerprint, in the user's cache directory.

Layout: ``<root>/engines/<fingerprint>/`` is an engine like any other, ``<fingerprint>.lock`` beside it is held while it is
built, copied or removed; so of two processes that want the same engine one builds and both use it. An entry that does not
verify is built again. Entries are copied out, never linked: an engine must survive whatever happens to the cache.

Environment: ``DISTILL_RT_CACHE`` is the root (default: the user's cache directory), ``DISTILL_RT_CACHE_GB`` the size at which
the least recently used engines are removed (default 20).
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from distill_rt.core.artifacts import EngineBody
from distill_rt.core.directory import publish, resource_errors
from distill_rt.core.errors import ArtifactError, ResourceError, UsageError
from distill_rt.core.manifest import decode_body, read_manifest, verify_files

DEFAULT_LIMIT_GB = 20.0


def engines_directory() -> Path:
    """Where cached engines are kept."""
    root = os.environ.get("DISTILL_RT_CACHE")
    if root:
        return Path(root).expanduser() / "engines"
    from platformdirs import user_cache_path

    return user_cache_path("distill-rt") / "engines"


@contextlib.contextmanager
def cached_engine(
    key: str,
    build: Callable[[Path], None],
    *,
    rebuild: bool = False,
    notify: Callable[[str], None] = lambda message: None,
) -> Iterator[Path]:
    """Yield the directory of the engine with fingerprint `key`, built now if the cache does not hold it intact.

    The entry's lock is held until the block ends.

    Args:
        key: fingerprint, hex.
        build: fills an empty directory with an engine, manifest included.
        rebuild: do not use what is cached, replace it.
        notify: told what is happening where that may surprise (waiting, a damaged entry).

    Raises:
        ResourceError: the cache directory is full or not writable.
    """
    root = engines_directory()
    limit_bytes = _limit_bytes()
    with contextlib.ExitStack() as stack:
        with _cache_errors(root):
            root.mkdir(parents=True, exist_ok=True)
            lock = FileLock(root / f"{key}.lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                notify("another process is building this engine: waiting for it")
                lock.acquire()
        stack.callback(lock.release)
        entry = root / key
        if rebuild or not _usable(entry, key, notify):
            _discard_leftovers(root, key)
            with _cache_errors(root), publish(entry, force=True) as directory:
                build(directory)
        os.utime(entry)
        yield entry
    _prune(root, limit_bytes, keep=key)


def is_engine(directory: Path, key: str) -> bool:
    """Whether an intact engine with this fingerprint stands there.

    Raises:
        ArtifactError: something stands there, but damaged or not an engine.
    """
    if not directory.exists():
        return False
    manifest = read_manifest(directory, "engine")
    body = decode_body(manifest, EngineBody, directory)
    verify_files(directory, manifest)
    return body.fingerprint == key


def _usable(entry: Path, key: str, notify: Callable[[str], None]) -> bool:
    if entry.is_symlink() or entry.is_file():  # nothing of ours; in its place an entry could not be published
        entry.unlink()
        return False
    try:
        return is_engine(entry, key)
    except ArtifactError as error:
        notify(f"the cached engine is damaged, building it again: {error.message}")
        return False


def _discard_leftovers(root: Path, key: str) -> None:
    """What a killed builder of this entry left; we hold its lock, so nobody is writing there."""
    for partial in root.glob(f".{key}.*"):
        shutil.rmtree(partial, ignore_errors=True)


def _prune(root: Path, limit_bytes: float, *, keep: str) -> None:
    """Remove what killed builders left, and the least recently used engines until the rest fits; entries in use are skipped."""
    entries = []
    for entry in root.iterdir():
        if entry.name.startswith("."):  # of a builder, which holds the lock of its entry as long as it lives
            with _unlocked(root, entry.name[1:].partition(".")[0]) as unlocked:
                if unlocked:
                    shutil.rmtree(entry, ignore_errors=True)
        elif entry.is_dir():
            with contextlib.suppress(FileNotFoundError):  # another process prunes too
                size = sum(file.stat().st_size for file in entry.rglob("*"))
                entries.append((entry.stat().st_mtime, size, entry))
    total = sum(size for _, size, _ in entries)
    for _, size, entry in sorted(entries):
        if total <= limit_bytes or entry.name == keep:
            continue
        with _unlocked(root, entry.name) as unlocked:
            if unlocked:
                shutil.rmtree(entry, ignore_errors=True)
                total -= size


@contextlib.contextmanager
def _unlocked(root: Path, key: str) -> Iterator[bool]:
    """Whether nobody else builds or uses this entry; held as long as the block runs."""
    lock = FileLock(root / f"{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _limit_bytes() -> float:
    text = os.environ.get("DISTILL_RT_CACHE_GB", "")
    try:
        limit_gb = float(text) if text else DEFAULT_LIMIT_GB
    except ValueError:
        limit_gb = -1.0
    if not limit_gb >= 0:
        raise UsageError(
            f"DISTILL_RT_CACHE_GB must be a number of gigabytes, got {text!r}",
            code="cache-limit",
            hint="unset it, or set it to a number such as 20",
        )
    return limit_gb * 1e9


@contextlib.contextmanager
def _cache_errors(root: Path) -> Iterator[None]:
    """A full or read-only cache, with the way around it."""
    try:
        with resource_errors(root):
            yield
    except ResourceError as error:
        raise ResourceError(
            error.message,
            code=error.code,
            hint="set DISTILL_RT_CACHE to a directory that can be written, or compile with --no-cache",
        ) from error
