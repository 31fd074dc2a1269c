"""The files that a manifest lists, against everything that happens to files."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from manifests import BODIES, edit, load, refusal

from distill_rt.core import codec
from distill_rt.core.digest import sha256_of
from distill_rt.core.errors import ArtifactError
from distill_rt.core.listing import FileEntry
from distill_rt.core.manifest import (
    Manifest,
    read_manifest,
    read_whole,
    write_manifest,
)


@pytest.mark.parametrize("name", ["weights.bin", "onnx/graph.bin", "empty"])
def test_a_missing_file(artifact, kind, name):
    (artifact / name).unlink()
    assert f"{name} is missing" in refusal(artifact, kind, "artifact-damaged")


def test_a_truncated_file(artifact, kind):
    os.truncate(artifact / "weights.bin", 255)
    assert "weights.bin has 255 bytes, the manifest says 256" in refusal(artifact, kind, "artifact-damaged")


def test_a_longer_file(artifact, kind):
    with open(artifact / "empty", "ab") as file:
        file.write(b"x")
    assert "empty has 1 bytes, the manifest says 0" in refusal(artifact, kind, "artifact-damaged")


@pytest.mark.parametrize("bit", [0, 7, 1000, 2047])
def test_a_flipped_bit_in_a_file(artifact, kind, bit):
    data = bytearray((artifact / "weights.bin").read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    (artifact / "weights.bin").write_bytes(data)
    assert "weights.bin has changed since it was written" in refusal(artifact, kind, "artifact-damaged")


def test_a_directory_in_place_of_a_file(artifact, kind):
    (artifact / "weights.bin").unlink()
    (artifact / "weights.bin").mkdir()
    assert "is no regular file" in refusal(artifact, kind, "artifact-damaged")


def test_a_pipe_in_place_of_a_file(artifact, kind):
    (artifact / "weights.bin").unlink()
    os.mkfifo(artifact / "weights.bin")
    assert "is no regular file" in refusal(artifact, kind, "artifact-damaged")  # and nobody waits for a writer


def test_links_are_refused_even_to_the_right_content(artifact, kind, tmp_path):
    (artifact / "weights.bin").rename(tmp_path / "moved")
    (artifact / "weights.bin").symlink_to(tmp_path / "moved")
    assert "is a link" in refusal(artifact, kind, "artifact-damaged")


def test_linked_folders_are_refused(artifact, kind, tmp_path):
    (artifact / "onnx").rename(tmp_path / "moved")
    (artifact / "onnx").symlink_to(tmp_path / "moved")
    assert "is a link" in refusal(artifact, kind, "artifact-damaged")


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "onnx/../../secret",
        "/etc/passwd",
        "//etc/passwd",
        "./weights.bin",
        "onnx//graph.bin",
        "onnx/",
        "",
        ".",
        "..",
        "onnx\\graph.bin",
        "C:\\x",
        "a\nb",
        "a\0b",
        "\ud800",
        "\x1b[31m",
        "x" * 300,
        "x/" * 3000 + "x",
    ],
    ids=range(18),
)
def test_paths_must_be_plain_and_beneath(artifact, kind, path, tmp_path):
    (tmp_path / "secret").write_bytes(b"")
    entry = {"path": path, "size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    edit(artifact, kind, files=[entry])
    with pytest.raises(ArtifactError) as caught:
        load(artifact, kind)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


@pytest.mark.parametrize(
    "changes",
    [
        {"size": -1},
        {"size": True},
        {"size": "3"},
        {"size": 3.0},
        {"sha256": "ab"},
        {"sha256": "AB" * 32},
        {"sha256": None},
    ],
)
def test_sizes_and_hashes_must_be_some(artifact, kind, changes):
    entry = {"path": "empty", "size": 0, "sha256": hashlib.sha256(b"").hexdigest(), **changes}
    edit(artifact, kind, files=[entry])
    assert "files[0]" in refusal(artifact, kind, "artifact-damaged")


def test_a_file_that_is_listed_twice(artifact, kind):
    entry = {"path": "empty", "size": 0, "sha256": hashlib.sha256(b"").hexdigest()}
    edit(artifact, kind, files=[entry, entry])
    assert "'empty' is listed twice" in refusal(artifact, kind, "artifact-damaged")


@pytest.mark.parametrize("name", ["manifest", "file", "directory"])
def test_what_may_not_be_read(kind, name):
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    directory = place / "artifact"
    directory.mkdir()
    (directory / "file").write_bytes(b"1")
    write_manifest(directory, kind, codec.to_json(BODIES[kind]))
    (directory if name == "directory" else directory / {"manifest": f"{kind}.json"}.get(name, name)).chmod(0o000)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        code = "artifact-missing" if name == "directory" else "artifact-unreadable"
        assert "Permission denied" in refusal(directory, kind, code)
    finally:
        if root:
            os.seteuid(0)
        directory.chmod(0o700)
        shutil.rmtree(place)


# -- a directory that is replaced while it is read ------------------------------------------------------------------------


@pytest.mark.parametrize("fails", [False, True])
def test_reading_again_what_was_replaced_meanwhile(artifact, kind, tmp_path, fails):
    other = tmp_path / "other"
    shutil.copytree(artifact, other)
    (other / "weights.bin").write_bytes(b"other")
    (other / f"{kind}.json").unlink()
    write_manifest(other, kind, codec.to_json(BODIES[kind]))
    reads: list[tuple[Manifest, bytes]] = []

    def read() -> tuple[Manifest, bytes]:
        manifest = load(artifact, kind)[0]
        if not reads:  # between the manifest and the weights
            shutil.rmtree(artifact)
            shutil.copytree(other, artifact)
        reads.append((manifest, (artifact / "weights.bin").read_bytes()))
        if fails and len(reads) == 1:
            raise ArtifactError("disturbed", code="artifact-damaged")
        return reads[-1]

    manifest, weights = read_whole(artifact, kind, read)
    assert len(reads) == 2
    assert weights == b"other"
    assert manifest == read_manifest(other, kind)


def test_what_stays_damaged_is_refused(artifact, kind):
    (artifact / "weights.bin").unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        read_whole(artifact, kind, lambda: load(artifact, kind))
    with pytest.raises(ArtifactError, match="does not exist"):
        read_whole(artifact / "absent", kind, lambda: load(artifact / "absent", kind))


# -- writing --------------------------------------------------------------------------------------------------------------


def test_numbers_that_json_lacks_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(tmp_path, "student", {"loss": float("nan")})


def test_file_entries_take_plain_names(tmp_path):
    (tmp_path / "ümlaut 名.bin").write_bytes(b"1")
    path = tmp_path / "ümlaut 名.bin"
    entry = FileEntry(path=path.name, size=1, sha256=sha256_of(path))
    assert codec.from_json(FileEntry, codec.to_json(entry)) == entry
