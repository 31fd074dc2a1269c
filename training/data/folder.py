"""A folder of images as a data set, with labels from its sub-folders or captions beside its images.

images/cat/1.png  images/dog/2.png          labels: the sub-folders, in alphabetical order
images/1.png  images/1.txt                  captions: a text file of the same name
images/metadata.jsonl                       captions: {"file_name": "1.png", "text": "a cat"} on each line, as in `datasets`
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import torch
from PIL import Image

from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.training.data.pixels import MODES
from distill_rt.training.data.streamed import StreamedImages

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
METADATA = "metadata.jsonl"


def open_folder(root: Path, *, sample_shape: tuple[int, int, int], kind: str) -> StreamedImages:
    """List a folder; nothing is decoded yet.

    Args:
        sample_shape: (C, H, W) that the images are brought to.
        kind: what goes with an image, as in `Condition.kind`: ``none``, ``label`` or ``text``.

    Raises:
        UsageError: no images, or not the labels or captions that `kind` needs.
        ArtifactError: a metadata file that cannot be read, or names images that are not there.
    """
    if sample_shape[0] not in MODES:
        raise UsageError(
            f"images have 1 or 3 channels, this student's samples have {sample_shape[0]}",
            code="data-shape",
            hint="a network on latents has a decoder in its contract, and its images go through --autoencoder",
        )
    files = sorted(_images(root))
    if not files:
        raise UsageError(
            f"there are no images in {root}", code="data-empty", hint=f"files that end in {' '.join(SUFFIXES)}"
        )
    classes: tuple[str, ...] = ()
    labels: list[int] | None = None
    captions: list[str] | None = None
    if kind == "label":
        classes, labels = _labels(root, files)
    elif kind == "text":
        captions = _captions(root, files)
    said = [str(value) for value in labels or captions or [""] * len(files)]
    return StreamedImages(
        source=str(root),
        identity=f"folder:{_digest(root, files, said)}",
        names=tuple(files),
        read=lambda i: Image.open(root / files[i]),
        sample_shape=sample_shape,
        label_N=None if labels is None else torch.tensor(labels, dtype=torch.int64),
        class_names=classes,
        captions_N=None if captions is None else tuple(captions),
    )


def _images(root: Path) -> Iterator[str]:
    """Image files beneath `root`, relative, with links to folders followed once; hidden files, links to nothing and what is no
    regular file are not data."""

    def refuse(error: OSError) -> None:
        raise error

    seen = set()
    for folder, folders, names in os.walk(root, onerror=refuse, followlinks=True):
        real = os.path.realpath(folder)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        if real not in seen:
            seen.add(real)
            here = PurePosixPath(Path(folder).relative_to(root).as_posix())
            images = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
            yield from (str(here / name) for name in images if os.path.isfile(os.path.join(folder, name)))


def _labels(root: Path, files: Sequence[str]) -> tuple[tuple[str, ...], list[int]]:
    """Class names and the label of every file: its first folder."""
    outside = [file for file in files if "/" not in file]
    if outside:
        has = "captions" if _has_captions(root, outside) else "no labels"
        raise UsageError(
            f"the student takes labels, and {len(outside)} of {len(files)} images in {root} are in no sub-folder (the first: "
            f"{outside[0]}; they have {has})",
            code="data-labels",
            hint="put the images of each class into a sub-folder of its name, or train without labels",
        )
    names = tuple(sorted({file.partition("/")[0] for file in files}))
    number = {name: i for i, name in enumerate(names)}
    return names, [number[file.partition("/")[0]] for file in files]


def _captions(root: Path, files: Sequence[str]) -> list[str]:
    """The caption of every file, from ``metadata.jsonl`` or from text files, never a mixture."""
    has_metadata = (root / METADATA).exists()
    texts = [file for file in files if _text_file(root, file).exists()]
    if has_metadata and texts:
        raise UsageError(
            f"{root} has captions in {METADATA} and in {len(texts)} text files (the first: {texts[0]}); only one can be meant",
            code="data-captions",
            hint="remove one of the two",
        )
    found = _read_metadata(root, set(files)) if has_metadata else {file: _read_text(root, file) for file in texts}
    missing = [file for file in files if file not in found]
    if missing:
        where = f"in {METADATA}" if has_metadata else "in a text file of the same name"
        raise UsageError(
            f"the student takes prompts, and {len(missing)} of {len(files)} images in {root} have no caption {where} (the "
            f"first: {missing[0]})",
            code="data-captions",
            hint="write the captions, or remove these images",
        )
    return [found[file] for file in files]


def _has_captions(root: Path, files: Sequence[str]) -> bool:
    return (root / METADATA).exists() or any(_text_file(root, file).exists() for file in files)


def _text_file(root: Path, file: str) -> Path:
    return (root / file).with_suffix(".txt")


def _read_text(root: Path, file: str) -> str:
    path = _text_file(root, file)
    try:
        return path.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8 text: {error.reason}", code="data-captions") from error


def _read_metadata(root: Path, files: set[str]) -> dict[str, str]:
    """file -> caption."""
    found: dict[str, str] = {}
    try:
        lines = (root / METADATA).read_text(encoding="utf-8-sig").split("\n")  # JSON may hold other line ends
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{root / METADATA} is not UTF-8 text: {error.reason}", code="data-captions") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            file, text = row["file_name"], row["text"]
            if not isinstance(text, str) or not isinstance(file, str):
                raise TypeError
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise _bad_metadata(root, number, 'is not {"file_name": "...", "text": "..."}') from error
        if file not in files:
            raise _bad_metadata(root, number, f"names {file!r:.80}, which is no image there")
        if file in found:
            raise _bad_metadata(root, number, f"names {file!r:.80} again")
        found[file] = text
    return found


def _bad_metadata(root: Path, number: int, what: str) -> ArtifactError:
    return ArtifactError(f"line {number} of {root / METADATA} {what}", code="data-captions", hint="correct the file")


def _digest(root: Path, files: Sequence[str], said: Sequence[str]) -> str:
    """Names what a folder holds: names, sizes, labels or captions; the pixels themselves are not read."""
    digest = hashlib.sha256()
    for file, text in zip(files, said, strict=True):
        digest.update(json.dumps([file, (root / file).stat().st_size, text]).encode() + b"\n")
    return digest.hexdigest()[:32]
