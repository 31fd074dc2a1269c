"""A full disk, the real thing: a file system of 100 kB. Needs the right to mount one."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill_rt.cli.main import main


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A directory with a few hundred bytes left."""
    mount = tmp_path / "full"
    mount.mkdir()
    try:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(mount)], capture_output=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("no mount command")
    if done.returncode != 0:
        pytest.skip("this user may not mount a file system")
    try:
        space = os.statvfs(mount)
        (mount / "fill").write_bytes(bytes(space.f_bavail * space.f_bsize))
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("command", ["generate", "compile", "compile uncached", "bench"])
def test_one_line_code_5_and_nothing_left(
    command: str, full: Path, artifacts: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    engine, bundle = str(artifacts["engine"]), str(artifacts["bundle"])
    build = ["compile", bundle, "--target", "onnxruntime:cpu", "--out", str(full / "e")]
    words = {
        "generate": ["generate", engine, "--label", "1", "--out", str(full / "a.png")],
        "compile": build,
        "compile uncached": [*build, "--no-cache"],
        "bench": ["bench", engine, "--requests", "2", "--out", str(full / "r.json")],
    }[command]
    assert main(words) == 5
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert "No space left on device" in err
    assert os.listdir(full) == ["fill"]
