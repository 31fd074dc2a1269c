"""One image file to the pixels of a sample: upright, without transparency, cropped to the middle, resized.

Legend: C channels, H rows, W columns.
"""

from __future__ import annotations

import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

MODES = {1: "L", 3: "RGB"}
"""Channels of a sample -> mode of Pillow."""

UNREADABLE = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    LookupError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises for files that are damaged, no images or absurdly large."""


def to_pixels(image: Image.Image, sample_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Pixels (C, H, W).

    The orientation that a camera noted is applied, transparent parts become white, and the largest part in the middle that has
    the sample's aspect ratio is resized by Pillow's Lanczos filter (three lobes, widened when it shrinks: no aliasing).

    Raises:
        ValueError: an image of floating point or 32-bit integers, whose white nobody knows.
        UNREADABLE: damaged.
    """
    c, h, w = sample_shape
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey, transparent = np.asarray(image, np.uint16), image.info.get("transparency")
        # An image made of an array has no transparent colour, so it becomes white here.
        image = Image.fromarray(np.where(grey == transparent, 255, grey // 257).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}, which has no white")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    fitted = ImageOps.fit(image.convert(MODES[c]), (w, h), Image.Resampling.LANCZOS)
    return np.asarray(fitted, np.uint8).reshape(h, w, c).transpose(2, 0, 1)
