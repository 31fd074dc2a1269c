"""Writers that fail leave nothing but one line: errors, refusals of the system, full disks, places that cannot be."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import tempfile
from pathlib import Path

import pytest
from directories import content, write

from distill_rt.core import directory
from distill_rt.core.directory import check_writable, publish, refuse_existing, write_file
from distill_rt.core.errors import ResourceError, UsageError


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
