"""Images to PNG files that say how they were made.

Every file carries PNG text: the seeds, labels or prompts, the engine's fingerprint, the whole request, the scale and the
version; `read_text` gives it back. Files are written beside their name and renamed, so nobody sees half a file.

Legend: B images, H rows, W columns, C channels.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from distill_rt.core.atomic_file import atomic_file
from distill_rt.core.directory import resource_errors
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.runtime.request import Result

MIN_SHOWN_PX = 64
"""Smaller images are enlarged by default, or nobody can see them."""

_COLOUR_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_PREFIX = "distill-rt:"


def default_scale(images_BHWC: NDArray[np.uint8]) -> int:
    """The smallest whole factor that makes both sides at least `MIN_SHOWN_PX`."""
    return max(1, -(-MIN_SHOWN_PX // int(min(images_BHWC.shape[1:3]))))


def make_grid(images_BHWC: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """All images on one sheet (H', W', C), row by row without gaps; by default as square as possible, the rest black."""
    num, height, width, channels = images_BHWC.shape
    columns = min(num, columns or math.ceil(math.sqrt(num)))
    rows = -(-num // columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:num] = images_BHWC
    sheet = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return sheet.reshape(rows * height, columns * width, channels)


def check_output(path: Path) -> None:
    """Refuse, before any work is done, a path that cannot become a PNG file.

    Raises:
        UsageError: a directory, or not named ``.png``.
        ResourceError: its directory cannot be made or written.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} does not end in .png", code="output-not-png", hint="images are written as PNG")
    if path.is_dir():
        raise UsageError(f"{path} is a directory", code="output-is-directory", hint="give the name of a file")
    with resource_errors(path):
        parent = _nearest_existing(path.parent)
        if not parent.is_dir():
            raise NotADirectoryError(20, f"{parent} is a file", str(parent))
        if not os.access(parent, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(parent))


def separate_paths(path: Path, num_images: int) -> list[Path]:
    """out.png for 12 images -> out_00.png ... out_11.png; a single image keeps its name."""
    if num_images == 1:
        return [path]
    digits = len(str(num_images - 1))
    return [path.with_name(f"{path.stem}_{k:0{digits}d}{path.suffix}") for k in range(num_images)]


def save_grid(path: Path, result: Result, *, scale: int | None = None, columns: int | None = None) -> None:
    """Write all images of a result as one sheet.

    Raises:
        UsageError: the student's number of channels is no PNG colour mode.
        ResourceError: the disk is full or not writable.
    """
    scale = scale or default_scale(result.images)
    _write(path, make_grid(result.images, columns), result, range(len(result.images)), scale)


def save_separate(path: Path, result: Result, *, scale: int | None = None) -> list[Path]:
    """Write each image to its own file (`separate_paths`); each file carries its own seed. Raises as `save_grid`."""
    scale = scale or default_scale(result.images)
    paths = separate_paths(path, len(result.images))
    for k, name in enumerate(paths):
        _write(name, result.images[k], result, range(k, k + 1), scale)
    return paths


def read_text(path: Path) -> dict[str, object]:
    """What a PNG of ours says about itself: seeds, labels, prompts, engine, request, scale, version.

    Raises:
        ArtifactError: no PNG, or one of somebody else.
    """
    try:
        with Image.open(path) as image:
            text = getattr(image, "text", {})
            found = {key.removeprefix(_PREFIX): json.loads(text[key]) for key in text if key.startswith(_PREFIX)}
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path} is not a readable PNG: {error}", code="image-unreadable") from error
    if not found:
        raise ArtifactError(f"{path} was not written by distill-rt", code="image-foreign")
    return found


def _write(path: Path, image_HWC: NDArray[np.uint8], result: Result, members: range, scale: int) -> None:
    channels = image_HWC.shape[-1]
    if channels not in _COLOUR_MODES:
        raise UsageError(
            f"images with {channels} channels cannot be written as PNG",
            code="channels-not-png",
            hint="take the array from Python: pipe.generate(...).images",
        )
    pixels = image_HWC.repeat(scale, axis=0).repeat(scale, axis=1)
    picture = Image.fromarray(pixels[..., 0] if channels == 1 else pixels, mode=None)
    with atomic_file(path) as partial:
        picture.save(partial, format="PNG", pnginfo=_text(result, members, scale))


def _text(result: Result, members: range, scale: int) -> PngInfo:
    from importlib.metadata import version

    values = {
        "seeds": [result.seeds[k] for k in members],
        "labels": None if result.labels is None else [result.labels[k] for k in members],
        "prompts": None if result.prompts is None else [result.prompts[k] for k in members],
        "cut_prompts": None if result.cut_prompts is None else [result.cut_prompts[k] for k in members],
        "engine": result.engine,
        "request": result.request.to_json(),
        "scale": scale,
        "version": version("distill-rt"),
    }
    info = PngInfo()
    info.add_text("Software", f"distill-rt {values['version']}")
    for key, value in values.items():
        info.add_text(_PREFIX + key, json.dumps(value))
    return info


def _nearest_existing(directory: Path) -> Path:
    while not directory.exists() and directory != directory.parent:
        directory = directory.parent
    return directory
