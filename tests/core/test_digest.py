"""Digests of files: the same figures on any number of threads, and no byte of a large file outside of a block."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from distill_rt.core import codec, digest
from distill_rt.core.digest import BLOCK_BYTES, num_blocks, sha256_of
from distill_rt.core.errors import ArtifactError
from distill_rt.core.listing import FileEntry, list_files
from distill_rt.core.manifest import Manifest, read_manifest, verify_files, write_manifest

BLOCK = 1000


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(digest, "BLOCK_BYTES", BLOCK)
    monkeypatch.setattr(digest, "READ_BYTES", 300)  # a block is several reads, the last one short


def bytes_of(size: int) -> bytes:
    return np.random.default_rng(size).bytes(size)


def listed(directory: Path, data: bytes) -> FileEntry:
    (directory / "weights.bin").write_bytes(data)
    (entry,) = list_files(directory)
    return entry


def hex_of(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("size", [0, 1, 299, 300, 999, 1000, 1001, 1999, 2000, 2001, 12_345])
def test_every_byte_is_in_one_block(tmp_path, small_blocks, size):
    data = bytes_of(size)
    entry = listed(tmp_path, data)
    slices = [data[start : start + BLOCK] for start in range(0, size, BLOCK)] if size > BLOCK else []
    assert entry == FileEntry(
        path="weights.bin", size=size, sha256=hex_of(data), blocks=tuple(hex_of(part) for part in slices)
    )
    assert num_blocks(size) == len(slices)


def test_blocks_have_the_size_of_the_format(tmp_path):
    """Other sizes would refuse every large file that was written before."""
    data = bytes_of(BLOCK_BYTES + 1)
    assert listed(tmp_path, data).blocks == (hex_of(data[: 1 << 24]), hex_of(data[1 << 24 :]))
    assert listed(tmp_path, data[:-1]).blocks == ()


@pytest.mark.parametrize(("start", "length"), [(0, None), (0, 0), (10, 5), (990, 20), (995, 50), (5000, 10)])
def test_a_part_of_a_file(tmp_path, small_blocks, start, length):
    data = bytes_of(1010)
    (tmp_path / "file").write_bytes(data)
    end = None if length is None else start + length
    assert sha256_of(tmp_path / "file", start, length) == hex_of(data[start:end])


@pytest.fixture
def large(tmp_path, small_blocks) -> tuple[Path, Manifest]:
    """Three files, of which the second has five blocks."""
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(bytes_of(4500))
    (tmp_path / "c").write_bytes(bytes_of(500))
    return tmp_path, write_manifest(tmp_path, "bundle", {})


def test_a_large_file_is_read_back(large):
    directory, manifest = large
    assert [len(entry.blocks) for entry in manifest.files] == [0, 5, 0]
    written = json.loads((directory / "bundle.json").read_text())["files"]
    assert ["blocks" in entry for entry in written] == [False, True, False]
    assert read_manifest(directory, "bundle") == manifest
    verify_files(directory, manifest)


@pytest.mark.parametrize("at", [0, 999, 1000, 2500, 3999, 4000, 4499])
def test_a_flipped_bit_in_any_block(large, at):
    directory, manifest = large
    data = bytearray((directory / "b").read_bytes())
    data[at] ^= 1
    (directory / "b").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"b has changed since it was written"):
        verify_files(directory, manifest)


def test_blocks_in_another_order(large):
    directory, manifest = large
    data = (directory / "b").read_bytes()
    (directory / "b").write_bytes(data[1000:2000] + data[:1000] + data[2000:])
    with pytest.raises(ArtifactError, match=r"b has changed since it was written"):
        verify_files(directory, manifest)


def test_the_first_of_several_damaged_files_is_named(large):
    directory, manifest = large
    for name in "bc":
        data = (directory / name).read_bytes()
        (directory / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ArtifactError, match=r"/b has changed"):
        verify_files(directory, manifest)
    os.truncate(directory / "c", 3)  # what needs no digest is told without one
    with pytest.raises(ArtifactError, match=r"/c has 3 bytes"):
        verify_files(directory, manifest)


def test_a_file_that_cannot_be_read_any_more(large, monkeypatch):
    directory, manifest = large

    def fail(path: Path, start: int = 0, length: int | None = None) -> str:
        if start == 3000:
            raise OSError(5, "Input/output error")
        return sha256_of(path, start, length)

    monkeypatch.setattr(digest, "sha256_of", fail)
    with pytest.raises(ArtifactError, match=r"/b cannot be read: Input/output error") as caught:
        verify_files(directory, manifest)
    assert caught.value.code == "artifact-unreadable"


def test_a_manifest_from_before_there_were_blocks(large):
    directory, manifest = large
    files = tuple(FileEntry(path=entry.path, size=entry.size, sha256=entry.sha256) for entry in manifest.files)
    verify_files(directory, Manifest(kind="bundle", files=files, body={}))
    (directory / "b").write_bytes(bytes(4500))
    with pytest.raises(ArtifactError, match=r"/b has changed"):
        verify_files(directory, Manifest(kind="bundle", files=files, body={}))


@pytest.mark.parametrize(
    "blocks", [["0" * 64], ["0" * 64] * 4, ["0" * 63] * 5, ["0" * 64 + "\n"] * 5, [1] * 5, "0" * 64]
)
def test_blocks_must_be_digests_and_all_there(large, blocks):
    entry = codec.to_json(large[1].files[1]) | {"blocks": blocks}
    with pytest.raises(codec.CodecError, match="files"):
        codec.from_json(Manifest, {"kind": "bundle", "files": [entry], "body": {}}, "manifest")
