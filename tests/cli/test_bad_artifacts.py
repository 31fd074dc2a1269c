"""Every way in which a directory can be wrong: one clear line, the right exit code, no traceback, nothing changed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill_rt.cli.main import main

Capture = pytest.CaptureFixture[str]
KINDS = ("student", "bundle", "engine")


def manifest_of(path: Path) -> Path:
    (manifest,) = (path / f"{kind}.json" for kind in KINDS if (path / f"{kind}.json").exists())
    return manifest


def largest_file(path: Path) -> Path:
    files = [file for file in path.rglob("*") if file.is_file() and file.parent / file.name != manifest_of(path)]
    return max(files, key=lambda file: file.stat().st_size)


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a manifest as somebody with an editor would who also knows how its digest is made."""
    from distill_rt.core import manifest as module

    file = manifest_of(path)
    data = json.loads(file.read_text())
    change(data)
    if "digest" in data:
        content = {key: data.get(key) for key in ("files", "body")} | {"kind": file.stem}
        text = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
        data["digest"] = module.hashlib.sha256(text).hexdigest()
    file.write_text(json.dumps(data))


def flip_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def replace_by_link(path: Path) -> None:
    file = largest_file(path)
    shutil.move(file, path.parent / "elsewhere")
    file.symlink_to(path.parent / "elsewhere")


def move_outside(path: Path) -> None:
    file = largest_file(path)
    shutil.move(file, path.parent / "elsewhere")
    relative = file.relative_to(path).as_posix()

    def change(data: dict[str, Any]) -> None:
        next(entry for entry in data["files"] if entry["path"] == relative)["path"] = "../elsewhere"

    edit(path, change)


def set_key(key: str, value: Any) -> Callable[[Path], None]:
    return lambda path: edit(path, lambda data: data.update({key: value}))


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


MANIFEST_DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing manifest": lambda path: manifest_of(path).unlink(),
    "empty manifest": lambda path: manifest_of(path).write_bytes(b""),
    "truncated manifest": lambda path: truncate(manifest_of(path)),
    "flipped bit in the manifest": lambda path: flip_bit(manifest_of(path)),
    "binary manifest": lambda path: manifest_of(path).write_bytes(os.urandom(1000)),
    "a list": lambda path: manifest_of(path).write_text("[1, 2]"),
    "deeply nested": lambda path: manifest_of(path).write_text("[" * 100_000),
    "foreign manifest": set_key("format", "somebody/else"),
    "future version": set_key("format_version", 99),
    "version of a wrong type": set_key("format_version", "one"),
    "unknown key": set_key("surprise", 1),
    "no files": set_key("files", None),
    "body of a wrong type": set_key("body", 7),
    "unknown key in the body": lambda path: edit(path, lambda data: data["body"].update({"surprise": 1})),
    "missing key in the body": lambda path: edit(path, lambda data: data["body"].pop("spec")),
    "NaN": lambda path: edit(path, lambda data: data["body"]["spec"]["guidance"].update({"max": float("nan")})),
    "dots in a path": move_outside,
    "absolute path": lambda path: edit(path, lambda data: data["files"][0].update({"path": "/etc/hostname"})),
}
FILE_DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing file": lambda path: largest_file(path).unlink(),
    "truncated file": lambda path: truncate(largest_file(path)),
    "flipped bit": lambda path: flip_bit(largest_file(path)),
    "longer file": lambda path: largest_file(path).write_bytes(largest_file(path).read_bytes() + b"x"),
    "a link": replace_by_link,
    "a directory": lambda path: (largest_file(path).unlink(), os.mkdir(path / "x")),
}

SAID = {
    "missing manifest": "neither a student nor a bundle nor an engine",
    "empty manifest": "not valid JSON",
    "truncated manifest": "not valid JSON",
    "binary manifest": "not valid JSON",
    "a list": "not written by distill-rt",
    "deeply nested": "not valid JSON",
    "foreign manifest": "not written by distill-rt",
    "future version": "upgrade distill-rt",
    "version of a wrong type": "format version",
    "unknown key": "unknown keys: 'surprise'",
    "no files": "files must be a list",
    "body of a wrong type": "body must be an object",
    "unknown key in the body": "unknown keys: 'surprise'",
    "missing key in the body": "lacks spec",
    "NaN": "NaN is not a JSON number",
    "dots in a path": "not a plain relative path",
    "absolute path": "not a plain relative path",
    "missing file": "is missing",
    "truncated file": "bytes, the manifest says",
    "flipped bit": "has changed since it was written",
    "longer file": "bytes, the manifest says",
    "a link": "is a link",
    "a directory": "is missing",
}
"""What the message must say; a flipped bit may hit anything."""


def snapshot(root: Path) -> dict[str, Any]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() else None for path in root.rglob("*")
    }


def check_refused(words: list[str], exit_code: int, capsys: Capture, said: str = "") -> str:
    """The error's code, after looking at the line, the exit code and the JSON object."""
    assert main(words) == exit_code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    assert said in err
    assert main([*words, "--json"]) == exit_code
    answer = json.loads(capsys.readouterr().out)
    assert answer["exit_code"] == exit_code
    return str(answer["error"]["code"])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", [*MANIFEST_DAMAGE, *FILE_DAMAGE])
def test_damage_is_refused(kind: str, damage: str, artifacts: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "artifact"
    shutil.copytree(artifacts[kind], path)
    assert main(["verify", str(path)]) == 0
    capsys.readouterr()
    (MANIFEST_DAMAGE | FILE_DAMAGE)[damage](path)
    before = snapshot(tmp_path)
    check_refused(["verify", str(path)], 3, capsys, SAID.get(damage, ""))
    if damage in MANIFEST_DAMAGE:
        check_refused(["inspect", str(path)], 3, capsys)
    else:
        assert main(["inspect", str(path)]) == 0, "inspect reads the manifest only"
        capsys.readouterr()
    if kind == "engine":
        check_refused(["generate", str(path), "--label", "1", "--out", str(tmp_path / "new" / "a.png")], 3, capsys)
        check_refused(["bench", str(path), "--out", str(tmp_path / "b.json")], 3, capsys)
    if kind == "bundle":
        check_refused(["compile", str(path), "--target", "onnxruntime:cpu", "--out", str(tmp_path / "e")], 3, capsys)
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_paths_that_are_no_artifact(command: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "file").touch()
    for name, code in (("none", "artifact-missing"), ("file", "artifact-missing"), (".", "artifact-foreign")):
        assert check_refused([command, str(tmp_path / name)], 3, capsys) == code


def test_the_wrong_kind(artifacts: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    png = str(tmp_path / "a.png")
    assert (
        check_refused(["generate", str(artifacts["bundle"]), "--label", "1", "--out", png], 3, capsys)
        == "artifact-kind"
    )
    assert (
        check_refused(["compile", str(artifacts["engine"]), "--out", str(tmp_path / "e")], 3, capsys) == "artifact-kind"
    )
    assert check_refused(["bench", str(artifacts["student"])], 3, capsys) == "artifact-kind"
    assert not list(tmp_path.iterdir())


def test_a_stale_engine_names_the_command_that_rebuilds_it(
    engine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "9.9.9")
    for words in (["verify", str(engine)], ["generate", str(engine), "--label", "1", "--out", str(tmp_path / "a.png")]):
        assert main(words) == 4
        err = capsys.readouterr().err
        assert "9.9.9" in err
        assert "distill-rt compile" in err
    assert not list(tmp_path.iterdir())


def test_files_that_are_not_listed_are_named(artifacts: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "artifact"
    shutil.copytree(artifacts["engine"], path)
    (path / "notes.txt").touch()
    assert main(["verify", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["unlisted_files"] == ["notes.txt"]
