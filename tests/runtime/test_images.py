"""PNG files: pixels, enlargement, and what they say about themselves."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_engine import tiny_spec

from distill_rt.core.errors import ArtifactError, ResourceError, UsageError
from distill_rt.runtime.images import (
    check_output,
    check_sheet,
    default_scale,
    make_grid,
    read_text,
    save_grid,
    save_separate,
    separate_paths,
)
from distill_rt.runtime.request import Request, Result


def result(num: int = 3, size: tuple[int, int, int] = (4, 6, 3)) -> Result:
    request = Request(labels=[1], seed=2**64 - 2, num_images=num, guidance=2.5).resolve(tiny_spec())
    pixels = np.random.default_rng(0).integers(0, 256, (num, *size), np.uint8)
    seeds = tuple((2**64 - 2 + k) % 2**64 for k in range(num))
    return Result(
        images=pixels,
        seeds=seeds,
        labels=request.labels,
        steps=2,
        guidance=2.5,
        timings_ms={},
        engine="f" * 64,
        request=request,
    )


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_pixels_survive(channels: int, mode: str, tmp_path: Path) -> None:
    made = result(5, (4, 6, channels))
    save_grid(tmp_path / "a.png", made, scale=2)
    with Image.open(tmp_path / "a.png") as image:
        assert image.mode == mode
        pixels = np.asarray(image).reshape(2 * 2 * 4, 2 * 3 * 6, channels)
    np.testing.assert_array_equal(pixels[::2, ::2], make_grid(made.images))
    np.testing.assert_array_equal(pixels[1::2, 1::2], make_grid(made.images))


def test_grid_is_row_by_row() -> None:
    made = result(5)
    sheet = make_grid(made.images, columns=2)
    assert sheet.shape == (3 * 4, 2 * 6, 3)
    np.testing.assert_array_equal(sheet[4:8, 6:12], made.images[3])
    assert not sheet[8:, 6:].any(), "the empty cell is black"


@pytest.mark.parametrize(
    ("size", "scale"), [((8, 8), 8), ((64, 64), 1), ((63, 200), 2), ((512, 512), 1), ((10, 40), 7)]
)
def test_small_images_are_enlarged_by_default(size: tuple[int, int], scale: int) -> None:
    assert default_scale(size) == scale


def test_text_says_how_to_make_it_again(tmp_path: Path) -> None:
    made = result()
    save_grid(tmp_path / "a.png", made)
    text = read_text(tmp_path / "a.png")
    assert text["seeds"] == [2**64 - 2, 2**64 - 1, 0]
    assert text["labels"] == [1, 1, 1]
    assert text["engine"] == "f" * 64
    assert text["request"] == made.request.to_json()
    assert text["scale"] == 16
    assert str(text["version"])[0].isdigit()


def test_separate_files_carry_their_own_seed(tmp_path: Path) -> None:
    paths = save_separate(tmp_path / "a.png", result(12))
    assert [path.name for path in paths[:2]] == ["a_00.png", "a_01.png"]
    assert [read_text(path)["seeds"] for path in paths[:3]] == [[2**64 - 2], [2**64 - 1], [0]]
    assert separate_paths(tmp_path / "a.png", 1) == [tmp_path / "a.png"]


def test_the_text_of_a_picture_larger_than_pillow_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_grid(tmp_path / "a.png", result(), scale=16)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "a.png")
    assert read_text(tmp_path / "a.png")["scale"] == 16


def test_pictures_that_no_png_holds() -> None:
    check_sheet((3, 256, 256), 4096, 1)
    for channels, num, scale, code in ((3, 4096, 2, "picture-too-large"), (2, 1, 1, "channels-not-png")):
        with pytest.raises(UsageError) as caught:
            check_sheet((channels, 256, 256), num, scale)
        assert caught.value.code == code


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    Image.new("L", (2, 2)).save(tmp_path / "foreign.png")
    (tmp_path / "broken.png").write_bytes(b"no")
    for name, code in (
        ("foreign.png", "image-foreign"),
        ("broken.png", "image-unreadable"),
        ("none.png", "image-unreadable"),
    ):
        with pytest.raises(ArtifactError) as caught:
            read_text(tmp_path / name)
        assert caught.value.code == code


def test_channels_that_png_does_not_know(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        save_grid(tmp_path / "a.png", result(1, (4, 4, 2)))
    assert caught.value.code == "channels-not-png"
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError) as caught:
        save_grid(path, result())
    assert caught.value.code == "disk-full"
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.png"]


def test_outputs_that_cannot_be_written_are_refused_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dir.png").mkdir()
    cases: list[tuple[Path, Any, str]] = [
        (tmp_path / "a.jpg", UsageError, "output-not-png"),
        (tmp_path / "dir.png", UsageError, "output-is-directory"),
        (tmp_path / "file" / "a.png", ResourceError, "not-writable"),
    ]
    for path, kind, code in cases:
        with pytest.raises(kind) as caught:
            check_output(path)
        assert caught.value.code == code
    check_output(tmp_path / "new" / "dirs" / "a.png")
    assert not (tmp_path / "new").exists()
