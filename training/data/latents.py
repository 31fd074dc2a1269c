"""Images as latents. Each image is encoded once and kept in a file, so that no training step waits for an autoencoder.

DIR/latents.json                  which images, by which autoencoder
DIR/latents-000000.safetensors    of the first 256 images: latents as float16, which ones could be read, and why not

Legend: B samples of a batch, N images, C channels of a latent, H rows, W columns.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from distill_rt.core.directory import resource_errors, write_file
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.training.data.base import Batch, Dataset
from distill_rt.training.data.streamed import StreamedImages
from distill_rt.training.draws import Draws, Purpose

MARK = "latents.json"
FILE_IMAGES = 256
ENCODED_AT_ONCE = 8
MAX_DIFFERENCE = 0.05
"""Relative L2 between a kept latent and the image's anew: other processors and float16 stay below 0.002."""
NUM_COMPARED = 4

Encode = Callable[[Tensor], Tensor]
"""Images (B, C', H', W') in [-1, 1] to latents (B, C, H, W), float32, on the processor."""
Progress = Callable[[int, int], None]
"""Called as progress(images done, images in all)."""


class EncodedBatches:
    """A data set that is encoded batch by batch: one of ours, which is small or has no end."""

    def __init__(self, images: Dataset, encode: Encode, latent_shape: tuple[int, int, int]) -> None:
        self._images, self._encode = images, encode
        self.sample_shape = latent_shape
        self.num_classes, self.has_captions = images.num_classes, images.has_captions

    def batch(self, draws: Draws) -> Batch:
        batch = self._images.batch(draws)
        return dataclasses.replace(batch, x0_BCHW=self._encode(batch.x0_BCHW))


class _File(NamedTuple):
    latents_NCHW: Tensor
    readable_N: Tensor


class KeptLatents:
    """The latents of streamed images.

    What a batch holds is decided as in `StreamedImages`: instead of an image that cannot be read stands the next one that can.
    An image whose file is not there yet is encoded when it is drawn; `fill` makes all files first.

    Args:
        directory: of the files; made by `fill`.
        made_by: names the autoencoder.

    Raises:
        UsageError: `directory` holds the latents of other images or by another autoencoder.
        ArtifactError: or something else.
    """

    def __init__(
        self,
        images: StreamedImages,
        encode: Encode,
        latent_shape: tuple[int, int, int],
        *,
        directory: Path,
        made_by: str,
    ) -> None:
        self._images, self._encode, self._directory = images, encode, directory
        self.sample_shape = latent_shape
        self.num_classes, self.has_captions = images.num_classes, images.has_captions
        self._num = len(images.names)
        self._mark = {"images": images.identity, "autoencoder": made_by, "shape": list(latent_shape)}
        self._files: dict[int, _File] = {}
        if directory.exists():
            self._check_mark()
            self._compare()

    def batch(self, draws: Draws) -> Batch:
        """Latents of images drawn with replacement.

        Raises:
            ArtifactError: not one image can be read.
        """
        drawn = draws.integers(0, self._num, Purpose.INDEX).tolist()
        found = [self._images.first_readable(i, self._latent) for i in drawn]
        x0_BCHW = torch.stack([latent for _, latent in found]).float()
        return self._images.batch_of([i for i, _ in found], x0_BCHW)

    def fill(
        self, *, rank: int = 0, count: int = 1, wait: Callable[[], None], progress: Progress | None = None
    ) -> None:
        """Encode what is missing, each of `count` processes its share; then whatever the others left on another disk.

        Args:
            wait: returns when all processes have called it.

        Raises:
            ResourceError: the disk is full or not writable.
        """
        numbers = range(-(-self._num // FILE_IMAGES))
        mine = [number for number in numbers if number % count == rank]
        with resource_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)
            write_file(self._directory / MARK, json.dumps(self._mark).encode())  # the same bytes from every process
        wait()
        for chosen in (mine, numbers):
            missing = [number for number in chosen if self._open(number) is None]
            for done, number in enumerate(missing):
                if progress is not None:
                    progress(done * FILE_IMAGES, len(missing) * FILE_IMAGES)
                self._write(number)
            wait()

    def _latent(self, i: int) -> Tensor | None:
        number, row = divmod(i, FILE_IMAGES)
        file = self._open(number)
        if file is None:
            return self._encoded([i])[0]
        return file.latents_NCHW[row] if bool(file.readable_N[row]) else None

    def _encoded(self, indices: Sequence[int]) -> list[Tensor | None]:
        """float16 latents, None for images that cannot be read."""
        pixels = self._images.pixels(indices)
        whole = [p for p in pixels if p is not None]
        if not whole:
            return [None] * len(indices)
        rows = iter(self._encode(torch.from_numpy(np.stack(whole)).float() / 127.5 - 1.0).half())
        return [None if p is None else next(rows) for p in pixels]

    def _path(self, number: int) -> Path:
        return self._directory / f"latents-{number:06d}.safetensors"

    def _open(self, number: int) -> _File | None:
        """A file's tensors, mapped; None where there is none that can be read, which is then made again."""
        if number not in self._files and self._path(number).exists():
            with contextlib.suppress(OSError, ValueError, KeyError, SafetensorError):
                self._files[number] = self._read(number)
        return self._files.get(number)

    def _read(self, number: int) -> _File:
        first = number * FILE_IMAGES
        with safe_open(self._path(number), framework="pt") as opened:
            said = json.loads((opened.metadata() or {})["images"])
            file = _File(opened.get_tensor("latents"), opened.get_tensor("readable"))
        if file.latents_NCHW.shape != (min(FILE_IMAGES, self._num - first), *self.sample_shape):
            raise ValueError
        self._images.unreadable.update({first + int(row): why for row, why in said["unreadable"].items()})
        self._images.enlarged.update(first + row for row in said["enlarged"])
        return file

    def _write(self, number: int) -> None:
        first = number * FILE_IMAGES
        indices = range(first, min(first + FILE_IMAGES, self._num))
        rows: list[Tensor | None] = []
        for start in range(0, len(indices), ENCODED_AT_ONCE):
            rows += self._encoded(indices[start : start + ENCODED_AT_ONCE])
        nothing = torch.zeros(self.sample_shape, dtype=torch.float16)
        tensors = {
            "latents": torch.stack([nothing if row is None else row for row in rows]),
            "readable": torch.tensor([row is not None for row in rows]),
        }
        said = {
            "unreadable": {i - first: why for i, why in self._images.unreadable.items() if i in indices},
            "enlarged": sorted(i - first for i in self._images.enlarged if i in indices),
        }
        path, partial = self._path(number), self._path(number).with_suffix(f".{secrets.token_hex(4)}.partial")
        with resource_errors(path):
            try:
                write_file(partial, save(tensors, {"images": json.dumps(said)}))
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def _check_mark(self) -> None:
        mark: Any = None
        with contextlib.suppress(OSError, ValueError, RecursionError):
            mark = json.loads((self._directory / MARK).read_bytes())
        if not isinstance(mark, dict):
            raise ArtifactError(
                f"{self._directory} is no directory of latents: {MARK} cannot be read",
                code="latents-invalid",
                hint="choose another directory for --latents, or remove this one",
            )
        if mark.get("autoencoder") != self._mark["autoencoder"]:
            raise _other(self._directory, "by another autoencoder")
        if mark != self._mark:
            raise _other(self._directory, "of other images")

    def _compare(self) -> None:
        """A folder is named by names and sizes of files, so a few images are encoded anew."""
        numbers = range(-(-self._num // FILE_IMAGES))
        for number in numbers[:: -(-len(numbers) // NUM_COMPARED)]:
            file = self._open(number)
            if file is None or not bool(file.readable_N.any()):
                continue
            row = int(file.readable_N.int().argmax())
            kept, anew = file.latents_NCHW[row].float(), self._encoded([number * FILE_IMAGES + row])[0]
            if anew is None or float((anew.float() - kept).norm() / kept.norm().clamp_min(1e-6)) > MAX_DIFFERENCE:
                name = self._images.names[number * FILE_IMAGES + row]
                raise _other(self._directory, f"of images that have changed ({name} has)")


def _other(directory: Path, what: str) -> UsageError:
    return UsageError(
        f"{directory} holds latents {what}",
        code="latents-of-others",
        hint="choose another directory for --latents, or remove this one",
    )
