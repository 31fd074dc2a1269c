"""Manifests of all three kinds: what is written is read, and what is wrong in them is refused by one line."""

from __future__ import annotations

import hashlib
import json
import random
import shutil

import pytest
from manifests import BODIES, edit, load, refusal

from distill_rt.core import codec
from distill_rt.core.errors import ArtifactError
from distill_rt.core.manifest import (
    FORMAT_VERSION,
    KINDS,
    kind_of,
    read_manifest,
    write_manifest,
)


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
