"""Images to PNG files that say how they were made.

Every file carries PNG text: the seeds, labels or prompts, the engine's fingerprint, the whole request, the scale and the
version; `read_text` gives it back. Files are written beside their name and renamed, so nobody sees half a file.

Legend: B images, H rows, W columns, C channels.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from distill_rt.core.atomic_file import atomic_file, check_file
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.runtime.request import Result

MIN_SHOWN_PX = 64
"""Smaller images are enlarged by default, or nobody can see them."""

MAX_PIXELS = 2**28
"""Of one picture: 4096 images of 256 x 256, of which a PNG takes three bytes each while it is written."""

_COLOUR_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_PREFIX = "distill-rt:"


def default_scale(size: tuple[int, int]) -> int:
    """The smallest whole factor that makes both sides of (H, W) at least `MIN_SHOWN_PX`."""
    return max(1, -(-MIN_SHOWN_PX // min(size)))


def make_grid(images_BHWC: NDArray[np.uint8], columns: int | None = None) -> NDArray[np.uint8]:
    """All images on one sheet (H', W', C), row by row without gaps; by default as square as possible, the rest black."""
    num, height, width, channels = images_BHWC.shape
    columns = _columns(num, columns)
    rows = -(-num // columns)
    cells = np.zeros((rows * columns, height, width, channels), np.uint8)
    cells[:num] = images_BHWC
    sheet = cells.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return sheet.reshape(rows * height, columns * width, channels)


def _columns(num_images: int, columns: int | None) -> int:
    return min(num_images, columns or math.ceil(math.sqrt(num_images)))


def check_output(path: Path) -> None:
    """Refuse, before any work is done, a path that cannot become a PNG file.

    Raises:
        UsageError: a directory, or not named ``.png``.
        ResourceError: its directory cannot be made or written.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"{path} is no name of a .png", code="output-not-png", hint="images are written as PNG")
    check_file(path)


def check_sheet(
    image_shape: tuple[int, int, int], num_images: int, scale: int | None, columns: int | None = None
) -> None:
    """Refuse, before any work is done, images that no PNG can hold.

    Args:
        image_shape: (C, H, W) of one image.
        num_images: on the sheet.
        scale, columns: as for `save_grid`.

    Raises:
        UsageError: the number of channels is no PNG colour mode, or more than `MAX_PIXELS` in all.
    """
    channels, height, width = image_shape
    if channels not in _COLOUR_MODES:
        raise UsageError(
            f"images with {channels} channels cannot be written as PNG",
            code="channels-not-png",
            hint="take the array from Python: pipe.generate(...).images",
        )
    columns = _columns(num_images, columns)
    factor = scale or default_scale((height, width))
    pixels = -(-num_images // columns) * columns * height * width * factor**2
    if pixels > MAX_PIXELS:
        raise UsageError(
            f"a picture of {num_images} images of {width} x {height}, {factor} times enlarged, has {pixels:.3g} pixels; "
            f"{MAX_PIXELS:.3g} can be written",
            code="picture-too-large",
            hint="use a smaller --scale, fewer images, or --separate",
        )


def separate_paths(path: Path, num_images: int) -> list[Path]:
    """out.png for 12 images -> out_00.png ... out_11.png; a single image keeps its name."""
    if num_images == 1:
        return [path]
    digits = len(str(num_images - 1))
    return [path.with_name(f"{path.stem}_{k:0{digits}d}{path.suffix}") for k in range(num_images)]


def save_grid(path: Path, result: Result, *, scale: int | None = None, columns: int | None = None) -> None:
    """Write all images of a result as one sheet.

    Raises:
        UsageError: as `check_sheet`.
        ResourceError: the disk is full or not writable.
    """
    scale = _checked_scale(result, len(result.images), scale, columns)
    _write(path, make_grid(result.images, columns), result, range(len(result.images)), scale)


def save_separate(path: Path, result: Result, *, scale: int | None = None) -> list[Path]:
    """Write each image to its own file (`separate_paths`); each file carries its own seed. Raises as `save_grid`."""
    scale = _checked_scale(result, 1, scale)
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
        # Not Image.open, which refuses pictures of more pixels than it would decode: nothing is decoded here.
        with PngImageFile(path) as image:
            text = image.text
            found = {key.removeprefix(_PREFIX): json.loads(text[key]) for key in text if key.startswith(_PREFIX)}
    except (OSError, ValueError, SyntaxError) as error:  # the last is PIL's word for a file that is no PNG
        raise ArtifactError(f"{path} is not a readable PNG: {error}", code="image-unreadable") from error
    if not found:
        raise ArtifactError(f"{path} was not written by distill-rt", code="image-foreign")
    return found


def _checked_scale(result: Result, num_images: int, scale: int | None, columns: int | None = None) -> int:
    _, height, width, channels = result.images.shape
    check_sheet((channels, height, width), num_images, scale, columns)
    return scale or default_scale((height, width))


def _write(path: Path, image_HWC: NDArray[np.uint8], result: Result, members: range, scale: int) -> None:
    pixels = image_HWC.repeat(scale, axis=0).repeat(scale, axis=1)
    picture = Image.fromarray(pixels[..., 0] if image_HWC.shape[-1] == 1 else pixels, mode=None)
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
