"""What a writer may replace: with force, nothing but our own directories, and the last of two writers."""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

import pytest
from directories import content, write

from distill_rt.core import directory
from distill_rt.core.directory import publish, refuse_existing
from distill_rt.core.errors import UsageError


@pytest.mark.parametrize("what", ["directory", "file", "link", "dangling link"])
def test_an_existing_path_is_refused(final, what):
    make(final, what)
    with pytest.raises(UsageError) as caught, publish(final, force=False):
        raise AssertionError("no work may be done")
    assert caught.value.code == "output-exists"
    assert "--force" in caught.value.hint


@pytest.mark.parametrize("what", ["file", "link", "dangling link"])
def test_force_replaces_only_directories(final, what):
    make(final, what)
    with pytest.raises(UsageError) as caught, publish(final, force=True):
        raise AssertionError("no work may be done")
    assert caught.value.code == "output-not-a-directory"
    assert os.path.lexists(final)


def make(path: Path, what: str) -> None:
    if what == "directory":
        path.mkdir()
    elif what == "file":
        path.write_text("mine")
    else:
        target = path.parent / "target"
        if what == "link":
            target.mkdir()
        path.symlink_to(target)


@pytest.mark.parametrize("name", [".", "..", "/", "sub/.."])
@pytest.mark.parametrize("force", [False, True])
def test_directories_that_cannot_be_replaced(tmp_path, monkeypatch, name, force):
    (tmp_path / "here" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(UsageError) as caught, publish(Path(name), force=force):
        raise AssertionError("no work may be done")
    assert caught.value.code == "output-not-a-directory"


def test_force_spares_what_is_not_ours(final):
    final.mkdir()
    refuse_existing(final, force=True, ours="student.json")  # empty: nothing is lost
    (final / "photo.jpg").write_text("mine")
    with pytest.raises(UsageError) as caught, publish(final, force=True, ours="student.json"):
        raise AssertionError("no work may be done")
    assert caught.value.code == "output-not-ours"
    assert (final / "photo.jpg").exists()
    (final / "student.json").write_text("damaged, but a student")
    refuse_existing(final, force=True, ours="student.json")
    with pytest.raises(UsageError, match="exists already"):
        refuse_existing(final, force=False, ours="student.json")


@pytest.mark.parametrize("force", [False, True])
def test_two_writers_at_once(final, force):
    """The slower one replaces the faster one's directory if it may, and is refused in one line if not."""

    def slow() -> None:
        with publish(final, force=force) as partial:
            (partial / "a").write_text("slow")
            write(final, "fast", force=force)

    with contextlib.nullcontext() if force else pytest.raises(UsageError, match="exists already"):
        slow()
    assert (final / "a").read_text() == ("slow" if force else "fast")
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize("exchange", [False, True])
def test_a_writer_that_is_overtaken_at_the_last_moment(final, monkeypatch, exchange):
    """Between looking and renaming another writer finishes."""
    real = os.rename

    def overtaken(source, target):
        monkeypatch.setattr(os, "rename", real)
        final.mkdir()
        (final / "a").write_text("fast")
        real(source, target)

    if not exchange:
        monkeypatch.setattr(directory, "_exchange", lambda a, b: False)
    monkeypatch.setattr(os, "rename", overtaken)
    with pytest.raises(UsageError, match="exists already"):
        write(final, "slow")
    assert (final / "a").read_text() == "fast"
    monkeypatch.setattr(os, "rename", overtaken)
    shutil.rmtree(final)
    write(final, "slow", force=True)
    assert content(final) == ("slow", "slow")
    assert list(final.parent.iterdir()) == [final]
