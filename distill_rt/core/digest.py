"""sha256 of files, on all cores: a large file also has one for each of its blocks, and blocks are hashed at the same time.

A core hashes 1 to 2 GB/s, so one digest over a large file would be a good part of the time that an engine takes to load.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

BLOCK_BYTES = 1 << 24
"""A file with more bytes has digests of blocks of this size, the last one shorter. Part of the manifest's format."""
READ_BYTES = 1 << 18
MAX_THREADS = 16


def sha256_of(path: Path, start: int = 0, length: int | None = None) -> str:
    """sha256, as hex, of the bytes from `start`: `length` of them, or those up to the end of the file."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(READ_BYTES))
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        while count := file.readinto(buffer if length is None else buffer[:length]):
            digest.update(buffer[:count])
            length = None if length is None else length - count
    return digest.hexdigest()


def num_blocks(size: int) -> int:
    """How many blocks with a digest of their own a file of `size` bytes has."""
    return -(-size // BLOCK_BYTES) if size > BLOCK_BYTES else 0


@contextlib.contextmanager
def hash_threads() -> Iterator[ThreadPoolExecutor]:
    """A thread for each core that this process may use; when the block ends, what nobody waited for is dropped."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pool = ThreadPoolExecutor(min(cores, MAX_THREADS), thread_name_prefix="sha256")
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def block_digests(pool: ThreadPoolExecutor, path: Path, size: int) -> list[Future[str]]:
    """sha256 of every block of a file of `size` bytes."""
    return [pool.submit(sha256_of, path, block * BLOCK_BYTES, BLOCK_BYTES) for block in range(num_blocks(size))]
