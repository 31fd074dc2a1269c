"""Directories that appear whole or not at all: readers, syncs, killed writers, and checking ahead."""

from __future__ import annotations

import errno
import itertools
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from directories import content, write

from distill_rt.core import directory
from distill_rt.core.directory import check_writable, publish, resource_errors
from distill_rt.core.errors import ResourceError, UsageError

# -- the good way ---------------------------------------------------------------------------------------------------------


def test_a_directory_appears_whole(final):
    with publish(final, force=False) as partial:
        assert partial.parent == final.parent
        (partial / "a").write_text("1")
        assert not final.exists()
    assert (final / "a").read_text() == "1"
    assert list(final.parent.iterdir()) == [final]


def test_parents_are_made(final):
    deep = final / "b" / "c"
    write(deep, "1")
    assert content(deep) == ("1", "1")


def test_force_replaces_everything(final):
    write(final, "1")
    (final / "stale").write_text("left from before")
    write(final, "2", force=True)
    assert content(final) == ("2", "2")
    assert not (final / "stale").exists()
    assert list(final.parent.iterdir()) == [final]


def test_force_without_the_systems_exchange(final, monkeypatch):
    monkeypatch.setattr(directory, "_exchange", lambda a, b: False)
    write(final, "1", force=True)
    write(final, "2", force=True)
    assert content(final) == ("2", "2")
    assert list(final.parent.iterdir()) == [final]


def test_a_failed_step_aside_puts_the_old_directory_back(final, monkeypatch):
    write(final, "1")
    rename = os.rename

    def failing(source, target):
        if Path(source).suffix == ".partial":
            raise OSError(errno.ENOTEMPTY if Path(final).exists() else errno.EIO, "simulated")
        rename(source, target)

    monkeypatch.setattr(directory, "_exchange", lambda a, b: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(ResourceError):
        write(final, "2", force=True)
    assert content(final) == ("1", "1")
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux exchanges two directories at once")
def test_a_reader_sees_the_old_or_the_new_one(final):
    """While a writer replaces the directory again and again: it never misses, and its two files never differ."""
    write(final, "0")
    stop, seen, wrong = threading.Event(), set(), []

    def read() -> None:
        while not stop.is_set():
            try:
                handle = os.open(final, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                wrong.append("there was no directory")
                continue
            try:
                texts = []
                for name in ("a", "sub/b"):
                    file = os.open(name, os.O_RDONLY, dir_fd=handle)
                    texts.append(os.read(file, 100))
                    os.close(file)
                if texts[0] != texts[1]:
                    wrong.append(f"a mixture: {texts}")
                seen.add(texts[0])
            except FileNotFoundError:
                pass  # the old one, being removed: a reader opens it anew
            finally:
                os.close(handle)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for i in itertools.count(1):
        write(final, str(i), force=True)
        if (i >= 60 and len(seen) > 5) or wrong or not any(reader.is_alive() for reader in readers):
            break
    alive = [reader.is_alive() for reader in readers]
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []
    assert all(alive)


def test_everything_is_synced_before_it_is_renamed(final, monkeypatch):
    order: list[str] = []
    paths: dict[int, str] = {}
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def open_(path, *arguments, **options):
        descriptor = real_open(path, *arguments, **options)
        paths[descriptor] = os.path.basename(os.path.normpath(path))
        return descriptor

    def fsync(descriptor):
        order.append(paths.get(descriptor, "file"))
        real_fsync(descriptor)

    def rename(source, target):
        order.append("rename")
        real_rename(source, target)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    write(final, "1")
    renamed = order.index("rename")
    assert {"a", "b", "sub"} <= set(order[:renamed])
    assert order[renamed + 1 :] == [final.parent.name], "the new name itself must survive a power cut"


# -- writers that were killed ---------------------------------------------------------------------------------------------

KILLED = """
import sys, time
from pathlib import Path
from distill_rt.core.directory import publish
with publish(Path(sys.argv[1]), force=True) as partial:
    (partial / "a").write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_the_next_writer_removes_what_a_killed_one_left(final):
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(final)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    (left,) = final.parent.glob(".artifact.*.partial")
    long_ago = time.time() - 3600
    os.utime(left, (long_ago, long_ago))
    write(final, "1")
    assert left.exists(), "its writer lives"
    process.kill()
    process.wait()
    process.stdout.close()
    write(final.parent / "other", "1")
    assert left.exists(), "it belongs to another artifact"
    write(final, "2", force=True)
    assert not left.exists()
    assert sorted(final.parent.iterdir()) == [final, final.parent / "other"]


def test_a_directory_that_was_made_just_now_is_spared(final):
    young = final.parent / ".artifact.1-00000000.partial"
    young.mkdir()
    write(final, "1")
    assert young.exists()


# -- checking ahead -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("empty")
def test_checking_ahead_leaves_nothing(final):
    check_writable(final)
    check_writable(final / "deep" / "er")


@pytest.mark.usefixtures("empty")
def test_checking_ahead_finds_what_would_stop_a_writer(final, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResourceError, match="read-only"):
        check_writable(final)


def test_resource_errors_passes_ours_on():
    error = UsageError("x", code="y")
    with pytest.raises(UsageError) as caught, resource_errors(Path("z")):
        raise error
    assert caught.value is error
