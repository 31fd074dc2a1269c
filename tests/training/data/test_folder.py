"""Folders of images: what is found, what goes with it, what is refused, and batches that nothing but the draws decides."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.training.data.folder import open_folder
from distill_rt.training.data.streamed import StreamedImages
from distill_rt.training.draws import Draws

SHAPE = (1, 4, 4)


def opened(root: Path, kind: str = "none") -> StreamedImages:
    return open_folder(root, sample_shape=SHAPE, kind=kind)


def greys_of(data: StreamedImages, draws: Draws) -> list[int]:
    levels = (data.batch(draws).x0_BCHW + 1.0) * 127.5
    assert float((levels.amax((1, 2, 3)) - levels.amin((1, 2, 3))).max()) < 1e-3
    return [round(float(level)) for level in levels.mean((1, 2, 3))]


# -- what is found --------------------------------------------------------------------------------------------------------


def test_images_with_labels_from_their_folders(greys):
    data = opened(greys, "label")
    assert data.class_names == ("dark", "light")
    assert (data.num_classes, data.has_captions, data.sample_shape) == (2, False, SHAPE)
    assert data.names == tuple(f"{'dark' if i < 6 else 'light'}/{i:02d}.png" for i in range(12))
    batch = data.batch(Draws(0, 0, 64))
    assert batch.x0_BCHW.shape == (64, *SHAPE)
    assert batch.x0_BCHW.dtype == torch.float32
    assert batch.captions_B is None
    assert batch.label_B is not None
    assert (batch.label_B == (batch.x0_BCHW.mean((1, 2, 3)) >= 120 / 127.5 - 1.0 - 1e-4)).all()
    assert batch.label_B.dtype == torch.int64
    plain = opened(greys)
    assert plain.num_classes == 0
    assert plain.batch(Draws(0, 0, 4)).label_B is None


def test_every_image_is_drawn_about_equally_often(greys):
    drawn = [level for step in range(40) for level in greys_of(opened_once(greys), Draws(0, step, 30))]
    counts = np.bincount(np.array(drawn) // 20, minlength=12)
    assert counts.sum() == 1200
    assert counts.min() > 60


def opened_once(root: Path, cache: dict[Path, StreamedImages] = {}) -> StreamedImages:  # noqa: B006
    return cache.setdefault(root, opened(root))


def test_only_images_are_data(greys, write):
    write(".hidden.png")
    write(".thumbnails/1.png")
    (greys / "notes.md").write_text("not an image")
    write("dark/UPPER.JPG", 10)
    (greys / "dark" / "lost.png").symlink_to(greys / "nowhere.png")
    os.mkfifo(greys / "dark" / "pipe.png")
    assert len(opened(greys).names) == 13


def test_linked_folders_are_followed_once(greys, tmp_path):
    (greys / "dark" / "again").symlink_to(greys / "dark")
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(greys / "dark" / "00.png", tmp_path / "elsewhere" / "x.png")
    (greys / "linked").symlink_to(tmp_path / "elsewhere")
    assert len(opened(greys).names) == 13


def test_captions_from_text_files(write, tmp_path):
    for i, caption in enumerate(["a cat", "", "zwei Hunde, grün\n"]):
        write(f"{i}.png", 10 * i, caption=caption)
    data = opened(tmp_path / "images", "text")
    assert data.captions_N == ("a cat", "", "zwei Hunde, grün")
    batch = data.batch(Draws(0, 0, 16))
    levels = greys_of(data, Draws(0, 0, 16))
    assert batch.captions_B == tuple(data.captions_N[level // 10] for level in levels)
    assert batch.label_B is None


def test_captions_from_metadata(write, tmp_path):
    for i in range(3):
        write(f"deep/{i}.png", i)
    rows = [{"file_name": f"deep/{i}.png", "text": f"number {i}", "extra": 1} for i in (2, 0, 1)]
    (tmp_path / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    assert opened(tmp_path / "images", "text").captions_N == ("number 0", "number 1", "number 2")
    rows[0]["text"] = "two\u2028lines"
    said = "\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "images" / "metadata.jsonl").write_text(said, encoding="utf-8-sig")
    assert opened(tmp_path / "images", "text").captions_N == ("number 0", "number 1", "two\u2028lines")


# -- what the pixels become -----------------------------------------------------------------------------------------------


def test_the_middle_is_kept(write, tmp_path):
    """A wide image loses its sides, a tall one its ends; the filter looks a little beyond, as at any other place."""
    for name, size, box in (("wide", (24, 8), (8, 0, 16, 8)), ("tall", (8, 24), (0, 8, 8, 16))):
        path = write(f"{name}.png", 0, size=size)
        image = Image.open(path)
        image.paste(200, box)
        image.save(path)
    data = opened(tmp_path / "images")
    levels = (data.batch(Draws(0, 0, 8)).x0_BCHW + 1.0) * 127.5
    assert len(levels.flatten(1).unique(dim=0)) == 2, "both were drawn"
    assert float((levels[:, :, 1:3, 1:3] - 200).abs().max()) < 3
    assert float((levels - 200).abs().max()) < 15


@pytest.mark.parametrize(
    ("colour", "options", "expected"),
    [
        ((255, 0, 0), {}, (255, 0, 0)),
        ((255, 0, 0, 0), {}, (255, 255, 255)),  # transparent parts become white
        ((0, 0, 0, 102), {}, (153, 153, 153)),
        (77, {}, (77, 77, 77)),
    ],
)
def test_every_mode_becomes_colour(write, tmp_path, colour, options, expected):
    write("1.png", colour, **options)
    data = open_folder(tmp_path / "images", sample_shape=(3, 4, 4), kind="none")
    pixels = (data.batch(Draws(0, 0, 1)).x0_BCHW[0] + 1.0) * 127.5
    assert [round(float(v)) for v in pixels[:, 2, 2]] == pytest.approx(expected, abs=1)


def test_sixteen_bits_keep_their_white(tmp_path):
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((8, 8), 65535, np.uint16)).save(tmp_path / "images" / "1.png")
    assert greys_of(opened(tmp_path / "images"), Draws(0, 0, 1)) == [255]
    Image.fromarray(np.full((8, 8), 9000, np.uint16)).save(tmp_path / "images" / "1.png", transparency=9000)
    assert greys_of(opened(tmp_path / "images"), Draws(0, 0, 1)) == [255], "its transparent colour"
    Image.fromarray(np.full((8, 8), 9000, np.uint16)).save(tmp_path / "images" / "1.png", transparency=9001)
    assert greys_of(opened(tmp_path / "images"), Draws(0, 0, 1)) == [35]


def test_a_camera_held_upright(tmp_path):
    (tmp_path / "images").mkdir()
    image = Image.new("L", (8, 8), 0)
    image.paste(255, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: the top becomes the right
    image.save(tmp_path / "images" / "1.jpg", exif=exif, quality=100)
    x0 = opened(tmp_path / "images").batch(Draws(0, 0, 1)).x0_BCHW[0, 0]
    assert float(x0[:, 2:].mean()) > 0.8
    assert float(x0[:, :2].mean()) < -0.8


def test_shrinking_does_not_alias(tmp_path):
    """A fine checkerboard is grey from afar; picking every eighth pixel would make it white."""
    (tmp_path / "images").mkdir()
    board = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    Image.fromarray(board).save(tmp_path / "images" / "1.png")
    x0 = opened(tmp_path / "images").batch(Draws(0, 0, 1)).x0_BCHW
    assert float(x0.abs().max()) < 0.05


# -- decided by the draws -------------------------------------------------------------------------------------------------


def test_a_batch_is_decided_by_the_draws_alone(greys):
    first = greys_of(opened(greys), Draws(3, 7, 16))
    other = opened(greys)
    for step in (1, 8, 7, 7):
        drawn = greys_of(other, Draws(3, step, 16))
    assert drawn == first
    assert greys_of(other, Draws(3, 7, 6, first_sample=10)) == first[10:]
    assert greys_of(other, Draws(4, 7, 16)) != first
    small = opened(greys)
    small.cache_bytes = 0  # everything is decoded again and again
    assert [greys_of(small, Draws(3, step, 16)) for step in range(4)] == [
        greys_of(other, Draws(3, step, 16)) for step in range(4)
    ]
    assert len(small._kept) <= 32


def test_the_next_step_is_decoded_ahead(greys, monkeypatch):
    data = opened(greys)
    data.batch(Draws(0, 0, 4))
    wanted = Draws(0, 0, 4).following().integers(0, 12, 0).tolist()  # type: ignore[arg-type]
    assert set(wanted) <= set(data._kept)
    for i in wanted:
        data._kept[i].result()
    monkeypatch.setattr(data, "read", lambda i: pytest.fail("decoded already"))
    data._start(wanted)
    assert [data.first_readable(i, data._decoded)[0] for i in wanted] == wanted


def test_the_identity_is_of_the_content(greys, tmp_path):
    first = opened(greys, "label").identity
    moved = tmp_path / "moved"
    shutil.copytree(greys, moved)
    assert opened(moved, "label").identity == first
    assert opened(moved).identity != first, "labels are part of it"
    (moved / "dark" / "00.png").rename(moved / "light" / "00.png")
    assert opened(moved, "label").identity != first
    shutil.rmtree(moved)
    shutil.copytree(greys, moved)
    Image.effect_noise((8, 8), 50).save(moved / "dark" / "00.png")
    assert opened(moved, "label").identity != first, "a file of another size"


# -- trouble --------------------------------------------------------------------------------------------------------------


def test_bad_images_are_replaced_by_the_next_and_counted(greys):
    intact = [greys_of(opened(greys), Draws(0, step, 32)) for step in range(3)]
    (greys / "dark" / "02.png").write_bytes(b"not an image")
    whole = (greys / "light" / "11.png").read_bytes()
    (greys / "light" / "11.png").write_bytes(whole[: len(whole) // 2])
    data = opened(greys, "label")
    swapped = {40: 60, 220: 0}
    for step in range(3):
        batch = data.batch(Draws(0, step, 32))
        drawn = greys_of(data, Draws(0, step, 32))
        assert drawn == [swapped.get(level, level) for level in intact[step]]
        assert batch.label_B is not None
        assert batch.label_B.tolist() == [int(level >= 120) for level in drawn], "the label is that of the other image"
    (note,) = data.notes
    assert "2 of 12 images" in note
    assert "the first: dark/02.png (cannot identify image file" in note
    assert note.count(str(greys)) == 1


def test_damage_that_pillow_reports_by_other_errors_is_damage(greys, monkeypatch):
    """TypeError of a TIFF whose tags hold numbers of another type."""

    def refuse(path):
        raise TypeError("'bytes' object cannot be interpreted as an integer")

    data = opened(greys)
    intact = Image.open
    monkeypatch.setattr(Image, "open", lambda path: (refuse if path.name == "02.png" else intact)(path))
    for step in range(3):
        data.batch(Draws(0, step, 32))
    (note,) = data.notes
    assert "1 of 12 images" in note


def test_small_images_are_said(greys, write):
    assert opened(greys).notes == []
    data = open_folder(greys, sample_shape=(1, 16, 16), kind="none")
    data.batch(Draws(0, 0, 64))
    (note,) = data.notes
    assert "12 of 12 images" in note
    assert "smaller than 16 x 16 pixels and were enlarged; the first: dark/00.png" in note


def test_nothing_but_bad_images(write, tmp_path):
    for i in range(3):
        write(f"{i}.png").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"none of the 3 images .* can be read; the first: 0.png") as caught:
        opened(tmp_path / "images").batch(Draws(0, 0, 2))
    assert caught.value.code == "data-unreadable"


def test_an_absurdly_large_image_is_bad(write, tmp_path, monkeypatch):
    write("1.png", 50)
    write("2.png", 0, size=(100, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    data = opened(tmp_path / "images")
    assert set(greys_of(data, Draws(0, 0, 8))) == {50}
    assert "2.png" in data.notes[0]


def test_floating_point_has_no_white(tmp_path, write):
    write("1.png", 50)
    Image.fromarray(np.zeros((8, 8), np.float32)).save(tmp_path / "images" / "2.tiff")
    data = opened(tmp_path / "images")
    assert set(greys_of(data, Draws(0, 0, 8))) == {50}
    assert "mode F" in data.notes[0]


def test_an_empty_folder(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "readme.txt").write_text("nothing here")
    with pytest.raises(UsageError, match="there are no images in") as caught:
        opened(tmp_path / "images")
    assert caught.value.code == "data-empty"
    assert ".png" in caught.value.hint


def test_latents_are_no_images(greys):
    with pytest.raises(UsageError, match="samples have 4") as caught:
        open_folder(greys, sample_shape=(4, 8, 8), kind="none")
    assert "encoder" in caught.value.hint


def test_images_without_labels(greys, write):
    write("loose.png", caption="a caption")
    with pytest.raises(
        UsageError, match=r"1 of 13 images .* in no sub-folder \(the first: loose.png; they have captions"
    ):
        opened(greys, "label")


def test_images_without_captions(greys):
    with pytest.raises(UsageError, match=r"takes prompts, and 12 of 12 images .* no caption in a text file") as caught:
        opened(greys, "text")
    assert caught.value.code == "data-captions"
    for i in range(3):
        (greys / "dark" / f"{i:02d}.txt").write_text("dark")
    with pytest.raises(UsageError, match=r"9 of 12 .* \(the first: dark/03.png"):
        opened(greys, "text")
    (greys / "metadata.jsonl").write_text("")
    with pytest.raises(UsageError, match=r"in metadata.jsonl and in 3 text files \(the first: dark/00.png\)"):
        opened(greys, "text")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 of"),
        ("[]", "line 2 of"),
        ("3", "line 2 of"),
        ('{"file_name": "1.png"}', "is not"),
        ('{"file_name": "1.png", "text": 3}', "is not"),
        ('{"file_name": 1, "text": "x"}', "is not"),
        ('{"file_name": "2.png", "text": "x"}', "names '2.png', which is no image there"),
        ('{"file_name": "../1.png", "text": "x"}', "no image there"),
        ('{"file_name": "0.png", "text": "x"}', "names '0.png' again"),
        ("[" * 100_000, "line 2 of"),
    ],
)
def test_metadata_that_is_wrong(write, tmp_path, line, said):
    write("0.png")
    write("1.png")
    (tmp_path / "images" / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "x"}\n' + line + "\n")
    with pytest.raises(ArtifactError) as caught:
        opened(tmp_path / "images", "text")
    assert said in caught.value.message
    assert caught.value.code == "data-captions"
    assert len(caught.value.message) < 400


def test_text_that_is_no_text(write, tmp_path):
    write("0.png", caption="x").with_suffix(".txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        opened(tmp_path / "images", "text")
    write("0.png").with_suffix(".txt").unlink()
    (tmp_path / "images" / "metadata.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        opened(tmp_path / "images", "text")


def test_many_threads_give_what_one_gives(greys):
    """The pool decodes in any order; what is put together is in the draws' order."""
    data = opened(greys)
    for step, _ in itertools.product(range(30), range(2)):
        expected = [20 * i for i in Draws(5, step, 8).integers(0, 12, 0).tolist()]  # type: ignore[arg-type]
        assert greys_of(data, Draws(5, step, 8)) == expected
