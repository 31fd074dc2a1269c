"""Images that are decoded when they are drawn, ahead of the step that wants them.

What a batch holds is decided by the draws and the files alone: an image that cannot be read is replaced by the next one of the
list that can, whoever asks and in whatever order. Decoded pixels stay in memory up to a limit; the rest is decoded again.

Legend: B samples of a batch, N images, C channels, H rows, W columns.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from distill_rt.core.errors import ArtifactError
from distill_rt.training.data.base import Batch
from distill_rt.training.data.pixels import UNREADABLE, to_pixels
from distill_rt.training.draws import Draws, Purpose

CACHE_BYTES = 1 << 28
Pixels = NDArray[np.uint8]
T = TypeVar("T")


@dataclass(kw_only=True)
class StreamedImages:
    """N images behind a function that reads one.

    Args:
        source: where they are, for messages.
        identity: names the content in checkpoints and students; the same wherever the images lie.
        names: of the images (N), for messages.
        read: image i as Pillow opens it; called from several threads.
        sample_shape: (C, H, W) that they are brought to; C is 1 or 3.
        label_N, class_names: labels and what they mean; None and () without.
        captions_N: one per image, or None.
        cache_bytes: decoded pixels that are kept.
    """

    source: str
    identity: str
    names: tuple[str, ...]
    read: Callable[[int], Image.Image]
    sample_shape: tuple[int, int, int]
    label_N: torch.Tensor | None = None
    class_names: tuple[str, ...] = ()
    captions_N: tuple[str, ...] | None = None
    cache_bytes: int = CACHE_BYTES

    unreadable: dict[int, str] = field(default_factory=dict, init=False, repr=False)
    """Why, by image, of those that were tried."""
    enlarged: set[int] = field(default_factory=set, init=False, repr=False)
    _kept: OrderedDict[int, Future[Pixels | None]] = field(default_factory=OrderedDict, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)
    _pool: ThreadPoolExecutor | None = field(default=None, init=False, repr=False)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def has_captions(self) -> bool:
        return self.captions_N is not None

    def batch(self, draws: Draws) -> Batch:
        """Images drawn with replacement.

        Raises:
            ArtifactError: not one image can be read.
        """
        drawn = draws.integers(0, len(self.names), Purpose.INDEX).tolist()
        self._start(drawn)
        found = [self.first_readable(i, self._decoded) for i in drawn]
        self._start(draws.following().integers(0, len(self.names), Purpose.INDEX).tolist())  # while the step trains
        x0_BCHW = torch.from_numpy(np.stack([pixels for _, pixels in found])).float() / 127.5 - 1.0
        return self.batch_of([i for i, _ in found], x0_BCHW)

    def batch_of(self, indices: Sequence[int], x0_BCHW: torch.Tensor) -> Batch:
        """x0 with the labels and captions of these images (B)."""
        return Batch(
            x0_BCHW=x0_BCHW,
            label_B=None if self.label_N is None else self.label_N[torch.tensor(indices)],
            captions_B=None if self.captions_N is None else tuple(self.captions_N[i] for i in indices),
        )

    def first_readable(self, i: int, read: Callable[[int], T | None]) -> tuple[int, T]:
        """`read` of image i or of the next one for which it is not None, with its index.

        Raises:
            ArtifactError: not one image can be read.
        """
        num = len(self.names)
        for k in itertools.chain(range(i, num), range(i)):
            found = read(k)
            if found is not None:
                return k, found
        raise ArtifactError(
            f"none of the {num} images in {self.source} can be read; the first: {self.names[0]} ({self.unreadable[0]})",
            code="data-unreadable",
            hint="check the files: PNG, JPEG and WebP are understood",
        )

    def pixels(self, indices: Sequence[int]) -> list[Pixels | None]:
        """Images by index, decoded in threads; None for one that cannot be read."""
        self._start(list(indices))
        with self._lock:
            started = [self._kept[i] for i in indices]
        return [future.result() for future in started]

    @property
    def notes(self) -> list[str]:
        """What a person should know of the images drawn so far, one line for each kind of trouble."""
        notes = []
        if self.unreadable:
            first = min(self.unreadable)
            notes.append(
                f"{len(self.unreadable)} of {len(self.names)} images in {self.source} cannot be read and were left out; "
                f"the first: {self.names[first]} ({self.unreadable[first]})"
            )
        if self.enlarged:
            _, h, w = self.sample_shape
            notes.append(
                f"{len(self.enlarged)} of {len(self.names)} images in {self.source} are smaller than {w} x {h} pixels and "
                f"were enlarged; the first: {self.names[min(self.enlarged)]}"
            )
        return notes

    def _start(self, indices: list[int]) -> None:
        """Have images decoded unless they are; the longest unused ones beyond the limit are forgotten."""
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="images")
            for i in indices:
                if i not in self._kept:
                    self._kept[i] = self._pool.submit(self._decode, i)
                self._kept.move_to_end(i)
            limit = max(2 * len(indices), self.cache_bytes // int(np.prod(self.sample_shape)))
            while len(self._kept) > limit:
                self._kept.popitem(last=False)

    def _decoded(self, i: int) -> Pixels | None:
        """Image i, by now decoded in a thread, as a rule."""
        if i in self.unreadable:
            return None
        with self._lock:
            started = self._kept.get(i)
        return self._decode(i) if started is None else started.result()

    def _decode(self, i: int) -> Pixels | None:
        try:
            with self.read(i) as image:
                if image.height < self.sample_shape[1] or image.width < self.sample_shape[2]:
                    self.enlarged.add(i)
                return to_pixels(image, self.sample_shape)
        except UNREADABLE as error:
            self.enlarged.discard(i)
            self.unreadable[i] = " ".join(str(error).replace(self.source, "").split())[:200]
            return None
