"""Directories that appear whole or not at all: readers, failures, full disks, other people's files."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from distill_rt.core import directory
from distill_rt.core.directory import check_writable, publish, refuse_existing, resource_errors, write_file
from distill_rt.core.errors import ResourceError, UsageError


def write(final: Path, text: str, *, force: bool = False) -> None:
    with publish(final, force=force) as partial:
        write_file(partial / "a", text.encode())
        (partial / "sub").mkdir()
        write_file(partial / "sub" / "b", text.encode())


def content(final: Path) -> tuple[str, str]:
    return (final / "a").read_text(), (final / "sub" / "b").read_text()


@pytest.fixture
def final(tmp_path: Path) -> Path:
    return tmp_path / "artifact"


@pytest.fixture
def empty(final: Path):
    """After the test, nothing but what it names may stand beside the artifact."""
    yield
    assert list(final.parent.iterdir()) == []


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


# -- failures leave nothing -----------------------------------------------------------------------------------------------


def fail(final: Path, error: type[BaseException], *, force: bool) -> None:
    with publish(final, force=force) as partial:
        (partial / "a").write_text("half")
        raise error


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.usefixtures("empty")
def test_a_failed_writer_leaves_nothing(final, error):
    with pytest.raises(error):
        fail(final, error, force=False)
    with pytest.raises(error):
        fail(final / "new" / "artifact", error, force=False)


def test_a_failed_writer_leaves_the_old_directory(final):
    write(final, "1")
    with pytest.raises(KeyboardInterrupt):
        fail(final, KeyboardInterrupt, force=True)
    assert content(final) == ("1", "1")
    assert list(final.parent.iterdir()) == [final]


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.ENOSPC, "disk-full"),
        (errno.EDQUOT, "disk-full"),
        (errno.EFBIG, "disk-full"),
        (errno.EACCES, "not-writable"),
        (errno.EPERM, "not-writable"),
        (errno.EROFS, "not-writable"),
        (errno.EIO, "disk-failure"),
    ],
)
@pytest.mark.parametrize("where", ["mkdir", "write", "fsync", "rename"])
@pytest.mark.usefixtures("empty")
def test_what_the_disk_refuses_is_one_line(final, monkeypatch, number, code, where):
    def refuse(*_arguments, **_options):
        raise OSError(number, os.strerror(number))

    owner, name = {
        "mkdir": (Path, "mkdir"),
        "write": (directory, "write_file"),
        "fsync": (os, "fsync"),
        "rename": (os, "rename"),
    }[where]
    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(ResourceError) as caught, publish(final, force=False) as partial:
        directory.write_file(partial / "a", b"1")
    assert caught.value.code == code
    assert caught.value.exit_code == 5
    assert caught.value.hint
    assert str(final) in caught.value.message
    assert os.strerror(number) in caught.value.message


@pytest.mark.usefixtures("empty")
def test_a_really_full_disk(final):
    """The system refuses the bytes, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(ResourceError) as caught, publish(final, force=False) as partial:
            write_file(partial / "a", bytes(1 << 17))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert caught.value.code == "disk-full"


@pytest.mark.usefixtures("empty")
def test_other_errors_are_not_dressed_up(final):
    with pytest.raises(FileNotFoundError), publish(final, force=False) as partial:
        (partial / "absent").read_text()


@pytest.fixture
def unprivileged():
    """A directory of a user whom permissions stop, and for this test we are that user."""
    place = Path(tempfile.mkdtemp())
    if os.geteuid() == 0:
        os.chown(place, 65534, 65534)
        os.seteuid(65534)
        yield place
        os.seteuid(0)
    else:
        yield place
    shutil.rmtree(place)


def test_a_directory_without_permission(unprivileged):
    locked = unprivileged / "locked"
    locked.mkdir(mode=0o500)
    for act in (write, lambda final, _: check_writable(final)):
        with pytest.raises(ResourceError, match="Permission denied"):
            act(locked / "artifact", "1")
    locked.chmod(0o000)
    with pytest.raises(ResourceError, match="Permission denied"):
        refuse_existing(locked / "artifact", force=False)
    locked.chmod(0o700)
    assert list(locked.iterdir()) == []


def test_a_part_of_the_path_is_a_file(tmp_path):
    (tmp_path / "file").write_text("mine")
    for final in (tmp_path / "file" / "artifact", tmp_path / "file" / "sub" / "artifact"):
        for act in (lambda final=final: write(final, "1"), lambda final=final: check_writable(final)):
            with pytest.raises(ResourceError, match="a part of the path is a file"):
                act()
    assert (tmp_path / "file").read_text() == "mine"
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_name_that_is_too_long(tmp_path):
    for final in (tmp_path / ("x" * 300), tmp_path / ("x" * 300) / "artifact"):
        with pytest.raises(ResourceError, match="too long"):
            write(final, "1")
    with pytest.raises(ResourceError, match="too long"):
        write(tmp_path / ("x" * 250), "1")  # the name would fit, its temporary one does not
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_itself(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises((ResourceError, UsageError)):
        write(tmp_path / "loop" / "artifact", "1")


# -- what may be replaced -------------------------------------------------------------------------------------------------


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
