"""Manifests of all three kinds against everything that happens to files: each refusal is one line with a way out."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from contracts import contract

from distill_rt.core import codec
from distill_rt.core.artifacts import BundleBody, EngineBody, GateReport, StudentBody
from distill_rt.core.artifacts import Distance as D
from distill_rt.core.digest import sha256_of
from distill_rt.core.errors import ArtifactError
from distill_rt.core.listing import FileEntry
from distill_rt.core.manifest import (
    FORMAT_VERSION,
    KINDS,
    Manifest,
    decode_body,
    kind_of,
    read_manifest,
    read_whole,
    verify_files,
    write_manifest,
)

DISTANCE = D(relative_l2=0.0, psnr_db=100.0, cosine=1.0)
GATE = GateReport(component_bar=DISTANCE, trajectory_bar=DISTANCE, components={}, trajectories={})
BODIES: dict[str, Any] = {
    "student": StudentBody(spec=contract(), weights=("weights.bin",)),
    "bundle": BundleBody(
        spec=contract(), student_digest="", mode="step", components={}, golden="weights.bin", versions={}
    ),
    "engine": EngineBody(
        spec=contract(),
        bundle_digest="",
        target="onnxruntime:cpu",
        precision="fp32",
        fingerprint="",
        fingerprint_parts={},
        batches=(1,),
        components={},
        gate=GATE,
        build_seconds=0.5,
    ),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def artifact(tmp_path: Path, kind) -> Path:
    directory = tmp_path / "artifact"
    (directory / "onnx").mkdir(parents=True)
    (directory / "weights.bin").write_bytes(bytes(range(256)))
    (directory / "onnx" / "graph.bin").write_bytes(b"graph")
    (directory / "empty").write_bytes(b"")
    write_manifest(directory, kind, codec.to_json(BODIES[kind]))
    return directory


def load(directory: Path, kind) -> tuple[Manifest, Any]:
    """What every loader does."""
    manifest = read_manifest(directory, kind)
    verify_files(directory, manifest)
    return manifest, decode_body(manifest, type(BODIES[kind]), directory)


def refusal(directory: Path, kind, code: str) -> str:
    """Load, and return the one line that says why not."""
    with pytest.raises(ArtifactError) as caught:
        load(directory, kind)
    error = caught.value
    assert error.code == code, str(error)
    assert error.exit_code == 3
    assert error.hint
    assert "\n" not in str(error)
    assert str(directory) in error.message
    assert len(error.message) < 400 + 2 * len(str(directory))
    json.dumps(error.to_json(), allow_nan=False).encode()
    str(error).encode()
    return error.message


def edit(directory: Path, kind, **changes: Any) -> None:
    """Change what the manifest says, and its digest with it: a manifest by another program, or by somebody's hand."""
    path = directory / f"{kind}.json"
    data = json.loads(path.read_text())
    data.update(changes)
    content = {"kind": kind, "files": data["files"], "body": data["body"]}
    data["digest"] = hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps(data))


# -- the good way ---------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read(artifact, kind):
    manifest, body = load(artifact, kind)
    assert kind_of(artifact) == manifest.kind == kind
    assert body == BODIES[kind]
    assert [entry.path for entry in manifest.files] == ["empty", "onnx/graph.bin", "weights.bin"]
    assert manifest.files[2].size == 256
    assert manifest.files[2].sha256 == hashlib.sha256(bytes(range(256))).hexdigest()


def test_the_digest_names_the_content(artifact, kind, tmp_path):
    digest = read_manifest(artifact, kind).digest
    copy = tmp_path / "elsewhere"
    shutil.copytree(artifact, copy)
    assert read_manifest(copy, kind).digest == digest
    (copy / "weights.bin").write_bytes(b"other")
    (copy / f"{kind}.json").unlink()
    assert write_manifest(copy, kind, codec.to_json(BODIES[kind])).digest != digest


def test_an_edited_manifest_of_equal_content_is_the_same(artifact, kind):
    """`edit` is the way the tests below tamper, so it must be able to write a good one."""
    digest = read_manifest(artifact, kind).digest
    edit(artifact, kind)
    assert load(artifact, kind)[0].digest == digest


def test_what_is_not_listed_is_neither_read_nor_in_the_way(artifact, kind):
    digest = read_manifest(artifact, kind).digest
    (artifact / ".DS_Store").write_bytes(b"x")
    (artifact / "onnx" / "notes.txt").write_bytes(b"x")
    (artifact / "dangling").symlink_to("nowhere")
    assert load(artifact, kind)[0].digest == digest


def test_a_directory_may_be_reached_through_a_link(artifact, kind, tmp_path):
    (tmp_path / "latest").symlink_to(artifact)
    assert load(tmp_path / "latest", kind)[1] == BODIES[kind]


# -- the manifest ---------------------------------------------------------------------------------------------------------


def test_no_such_directory(tmp_path, kind):
    assert "does not exist" in refusal(tmp_path / "absent", kind, "artifact-missing")
    (tmp_path / "file").write_text("x")
    assert "is not a directory" in refusal(tmp_path / "file", kind, "artifact-missing")
    assert "does not exist" in refusal(tmp_path / "file" / "inside", kind, "artifact-missing")
    assert "too long" in refusal(tmp_path / ("x" * 300), kind, "artifact-missing")


def test_no_manifest(artifact, kind):
    (artifact / f"{kind}.json").unlink()
    message = refusal(artifact, kind, "artifact-foreign")
    assert "neither a student nor a bundle nor an engine" in message


def test_a_manifest_that_is_no_file(artifact, kind):
    (artifact / f"{kind}.json").unlink()
    (artifact / f"{kind}.json").mkdir()
    refusal(artifact, kind, "artifact-foreign")


def test_a_manifest_that_is_a_link(artifact, kind, tmp_path):
    path = artifact / f"{kind}.json"
    path.rename(tmp_path / "manifest")
    path.symlink_to(tmp_path / "manifest")
    assert "is a link" in refusal(artifact, kind, "artifact-damaged")


@pytest.mark.parametrize("other", KINDS)
def test_another_kind_of_directory(artifact, kind, other):
    if other == kind:
        return
    message = refusal(artifact, other, "artifact-kind")
    assert f"expected a directory of kind {other}" in message
    assert f"is of kind {kind}" in message


def test_a_manifest_under_another_name(artifact, kind):
    other = KINDS[KINDS.index(kind) - 1]
    (artifact / f"{kind}.json").rename(artifact / f"{other}.json")
    assert f"format 'distill-rt/{kind}'" in refusal(artifact, other, "artifact-foreign")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1, 2",
        b"\xff\xfe\x00",
        b"\x80abc",
        b"\x00" * 100,
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": 1e999}',
        b'{"a": -1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        b"[" * 100_000 + b"]" * 100_000,
        b"\x1f\x8b\x08",
        b"not json",
    ],
    ids=range(16),
)
def test_no_json(artifact, kind, data):
    (artifact / f"{kind}.json").write_bytes(data)
    assert "is not valid JSON" in refusal(artifact, kind, "artifact-damaged")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.99])
def test_a_truncated_manifest(artifact, kind, share):
    path = artifact / f"{kind}.json"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert "is not valid JSON" in refusal(artifact, kind, "artifact-damaged")


@pytest.mark.parametrize("data", ["[]", "null", "3", '"student"', "{}", '{"format": "diffusers"}', '{"format": ["x"]}'])
def test_a_foreign_manifest(artifact, kind, data):
    (artifact / f"{kind}.json").write_text(data)
    assert "was not written by distill-rt" in refusal(artifact, kind, "artifact-foreign")


@pytest.mark.parametrize("version", [FORMAT_VERSION + 1, 10**6, 10**300])
def test_a_manifest_from_the_future(artifact, kind, version):
    edit(artifact, kind, format_version=version)
    with pytest.raises(ArtifactError) as caught:
        load(artifact, kind)
    assert caught.value.hint == "upgrade distill-rt"
    assert f"reads version {FORMAT_VERSION}" in refusal(artifact, kind, "artifact-version")


@pytest.mark.parametrize("version", [FORMAT_VERSION - 1, -1, None, "1", True, 1.0, [1]])
def test_a_manifest_from_the_past_or_of_no_version(artifact, kind, version):
    edit(artifact, kind, format_version=version)
    with pytest.raises(ArtifactError) as caught:
        load(artifact, kind)
    assert "again" in caught.value.hint
    assert "has format version" in refusal(artifact, kind, "artifact-version")


def test_every_flipped_bit_is_noticed(artifact, kind):
    """No bit of a manifest may change what is loaded: it is refused, or (1e-3 to 1E-3) means what it meant."""
    path = artifact / f"{kind}.json"
    good, data = load(artifact, kind), path.read_bytes()
    refused = []
    for bit in random.Random(0).sample(range(8 * len(data)), 600):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            assert load(artifact, kind) == good
        except ArtifactError as error:
            refused.append(error)
    assert len(refused) > 590
    assert all(error.hint and "\n" not in str(error) for error in refused)


@pytest.mark.parametrize("where", ["top", "body", "spec", "file"])
def test_unknown_keys(artifact, kind, where):
    data = json.loads((artifact / f"{kind}.json").read_text())
    inner = {"top": data, "body": data["body"], "spec": data["body"]["spec"], "file": data["files"][0]}[where]
    inner["comment\n"] = 1
    edit(artifact, kind, **data)
    assert "unknown keys: 'comment\\n'" in refusal(artifact, kind, "artifact-damaged")


@pytest.mark.parametrize("key", ["files", "body", "digest"])
@pytest.mark.parametrize("value", [None, 3, "x", True, [3], {"a": 1}])
def test_wrong_values_at_the_top(artifact, kind, key, value):
    path = artifact / f"{kind}.json"
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, key: value}))
    refusal(artifact, kind, "artifact-damaged")
    del data[key]
    path.write_text(json.dumps(data))
    refusal(artifact, kind, "artifact-damaged")


def test_a_wrong_value_in_the_body_is_named(artifact, kind):
    body = codec.to_json(BODIES[kind])
    body["spec"]["guidance"]["max"] = "four"
    edit(artifact, kind, body=body)
    assert "body.spec.guidance.max must be a number, got 'four'" in refusal(artifact, kind, "artifact-damaged")


@pytest.mark.parametrize("depth", [10, 100, 500, 700, 800, 850, 900, 920, 940, 950, 960, 970, 980, 990, 1000, 2000])
def test_deep_nesting_is_read_or_refused(artifact, kind, depth):
    """An intact manifest around the depth that Python's parser and writer can follow, which depends on the caller's own."""
    path = artifact / f"{kind}.json"
    body = codec.to_json(BODIES[kind])
    body["spec"]["provenance"] = {"deep": "@"}
    edit(artifact, kind, body=body)
    data = json.loads(path.read_text())
    content = {"kind": kind, "files": data["files"], "body": data["body"]}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    nest = "[" * depth + "]" * depth
    data["digest"] = hashlib.sha256(text.replace('"@"', nest).encode()).hexdigest()
    path.write_text(json.dumps(data).replace('"@"', nest))
    refused = ""
    try:
        assert load(artifact, kind)[0].digest == data["digest"]
    except ArtifactError as error:
        refused = str(error)
    assert not refused or depth > 500, refused
    assert "\n" not in refused


# -- the files ------------------------------------------------------------------------------------------------------------


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
