"""Folders of small images for the tests of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """write("cat/1.png", colour, size=(w, h), caption=...) in the folder ``images``."""

    def one(
        name: str, colour: int | tuple[int, ...] = 0, *, size=(8, 8), caption: str | None = None, **options
    ) -> Path:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = {1: "L", 3: "RGB", 4: "RGBA"}[1 if isinstance(colour, int) else len(colour)]
        Image.new(mode, size, colour).save(path, **options)
        if caption is not None:
            path.with_suffix(".txt").write_text(caption)
        return path

    return one


@pytest.fixture
def greys(write: Write, tmp_path: Path) -> Path:
    """Twelve images of one grey each, 0, 20, ... 220, in two classes."""
    for i in range(12):
        write(f"{'dark' if i < 6 else 'light'}/{i:02d}.png", 20 * i)
    return tmp_path / "images"
