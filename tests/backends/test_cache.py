"""The engine cache: one builder, verified entries, a limit."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

from distill_rt.backends.cache import cached_engine, engines_directory
from distill_rt.core.errors import ResourceError, UsageError
from distill_rt.core.manifest import read_manifest

Build = Callable[[Path], None]


@pytest.fixture
def key(engine: Path) -> str:
    fingerprint: str = read_manifest(engine, "engine").body["fingerprint"]
    return fingerprint


@pytest.fixture
def builds(engine: Path) -> list[Path]:
    return []


@pytest.fixture
def build(engine: Path, builds: list[Path]) -> Build:
    """Fills a directory with the engine and counts."""

    def fill(directory: Path) -> None:
        builds.append(directory)
        shutil.copytree(engine, directory, dirs_exist_ok=True)

    return fill


def test_the_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DISTILL_RT_CACHE", str(tmp_path / "here"))
    assert engines_directory() == tmp_path / "here" / "engines"
    monkeypatch.delenv("DISTILL_RT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert tmp_path / "xdg" in engines_directory().parents or os.name != "posix"


def test_built_once(key: str, build: Build, builds: list[Path]) -> None:
    for _ in range(3):
        with cached_engine(key, build) as entry:
            assert read_manifest(entry, "engine").body["fingerprint"] == key
    assert len(builds) == 1


def test_rebuild_builds_again(key: str, build: Build, builds: list[Path]) -> None:
    for _ in range(2):
        with cached_engine(key, build, rebuild=True):
            pass
    assert len(builds) == 2


def _flip_bit(entry: Path) -> None:
    file = entry / "network0.b1.weights"
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def _replace_by_file(entry: Path) -> None:
    shutil.rmtree(entry)
    entry.write_text("?")


def _replace_by_link(entry: Path) -> None:
    elsewhere = entry.parent / "elsewhere"
    shutil.move(entry, elsewhere)
    entry.symlink_to(elsewhere)


@pytest.mark.parametrize(
    "damage",
    [
        _flip_bit,
        lambda entry: (entry / "network0.b1.onnx").unlink(),
        lambda entry: (entry / "engine.json").write_text("{"),
        lambda entry: (entry / "engine.json").unlink(),
        _replace_by_file,
        _replace_by_link,
    ],
)
def test_a_damaged_entry_is_built_again(
    damage: Callable[[Path], None], key: str, build: Build, builds: list[Path]
) -> None:
    with cached_engine(key, build) as entry:
        pass
    damage(entry)
    with cached_engine(key, build) as entry:
        assert read_manifest(entry, "engine").body["fingerprint"] == key
    assert len(builds) == 2


def test_an_engine_under_the_wrong_name_is_not_used(key: str, build: Build, builds: list[Path]) -> None:
    with cached_engine("0" * 64, build) as entry:
        assert entry.name == "0" * 64
    with cached_engine("0" * 64, build):
        pass
    assert len(builds) == 2  # its fingerprint is `key`, so it is no hit


def test_a_failed_build_leaves_nothing(key: str, build: Build) -> None:
    def fail(directory: Path) -> None:
        build(directory)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), cached_engine(key, fail):
        pass
    assert [path.name for path in engines_directory().iterdir()] == [f"{key}.lock"]
    with cached_engine(key, build) as entry:  # and the lock is free
        assert entry.is_dir()


def test_what_a_killed_builder_left_is_removed(key: str, build: Build) -> None:
    leftover = engines_directory() / f".{key}.123-abc.partial"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("x")
    with cached_engine(key, build):
        assert not leftover.exists()


def test_what_killed_builders_of_other_entries_left_is_removed(key: str, build: Build) -> None:
    abandoned, building = (engines_directory() / f".{name}.123-abc.partial" for name in ("dead", "alive"))
    for directory in (abandoned, building):
        directory.mkdir(parents=True)
    with FileLock(engines_directory() / "alive.lock", thread_local=False), cached_engine(key, build):
        pass
    assert not abandoned.exists()
    assert building.exists()


def test_the_lock_is_held_while_the_entry_is_used(key: str, build: Build) -> None:
    with cached_engine(key, build) as entry:
        other = FileLock(f"{entry}.lock", thread_local=False)
        with pytest.raises(TimeoutError):
            other.acquire(timeout=0)


def test_the_least_recently_used_goes(key: str, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, used_at in (("a", 100), ("b", 300), ("d", 200)):
        os.utime(_filled(build, name * 64), (0, used_at))
    size = sum(file.stat().st_size for file in (engines_directory() / ("a" * 64)).iterdir())
    monkeypatch.setenv("DISTILL_RT_CACHE_GB", str(2.5 * size / 1e9))
    in_use = FileLock(engines_directory() / ("a" * 64 + ".lock"), thread_local=False)
    with in_use:  # the oldest cannot go, so the two next ones do
        _filled(build, "c" * 64)
    assert {path.name[0] for path in engines_directory().iterdir() if path.is_dir()} == {"a", "c"}


def test_the_entry_just_used_stays(key: str, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_RT_CACHE_GB", "0")
    entry = _filled(build, key)
    assert entry.is_dir()
    _filled(build, "b" * 64)
    assert not entry.exists()


@pytest.mark.parametrize("text", ["many", "-1", "nan"])
def test_a_limit_that_is_none(text: str, key: str, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_RT_CACHE_GB", text)
    with (
        pytest.raises(UsageError, match="DISTILL_RT_CACHE_GB must be a number of gigabytes"),
        cached_engine(key, build),
    ):
        pass


def test_a_cache_that_cannot_be_written(
    key: str, build: Build, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DISTILL_RT_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ResourceError) as caught, cached_engine(key, build):
        pass
    assert "set DISTILL_RT_CACHE to a directory that can be written" in caught.value.hint


def _filled(build: Build, key: str) -> Path:
    with cached_engine(key, build) as entry:
        return entry
