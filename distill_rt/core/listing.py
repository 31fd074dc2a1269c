"""The files of an artifact as its manifest lists them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from distill_rt.core.digest import block_digests, hash_threads, num_blocks, sha256_of

SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FileEntry:
    """One file of an artifact.

    Args:
        path: posix, relative to the directory.
        size: in bytes.
        sha256: of the file, as hex.
        blocks: sha256 of every block of `BLOCK_BYTES`, if there is more than one. Loading then checks these, on all cores.
    """

    path: str
    size: int
    sha256: str
    blocks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        path = PurePosixPath(self.path)
        plain = str(path) == self.path and self.path.isprintable() and "\\" not in self.path
        if not path.parts or path.is_absolute() or ".." in path.parts or not plain:
            raise ValueError(f"path {self.path!r} is not a plain relative path beneath the directory")
        if self.size < 0 or not all(map(SHA256.fullmatch, (self.sha256, *self.blocks))):
            raise ValueError(f"file {self.path!r} has a size or sha256 that is none")
        if len(self.blocks) not in (0, num_blocks(self.size)):
            raise ValueError(f"file {self.path!r} has {num_blocks(self.size)} blocks, not {len(self.blocks)}")

    def to_json(self) -> dict[str, Any]:
        """As in the manifest; small files have no ``blocks`` there."""
        entry = {"path": self.path, "size": self.size, "sha256": self.sha256}
        return entry | ({"blocks": list(self.blocks)} if self.blocks else {})


def list_files(directory: Path) -> tuple[FileEntry, ...]:
    """Every file beneath `directory`, by path."""
    paths = sorted(directory.rglob("*"))
    if links := [path for path in paths if path.is_symlink()]:
        raise AssertionError(f"artifact writer left a link: {links[0]}")
    files = {path: path.stat().st_size for path in paths if path.is_file()}
    with hash_threads() as pool:
        digests = {path: (pool.submit(sha256_of, path), block_digests(pool, path, files[path])) for path in files}
        return tuple(
            FileEntry(
                path=path.relative_to(directory).as_posix(),
                size=files[path],
                sha256=whole.result(),
                blocks=tuple(block.result() for block in blocks),
            )
            for path, (whole, blocks) in digests.items()
        )
