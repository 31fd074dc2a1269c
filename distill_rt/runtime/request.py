"""What a caller asks for and what comes back.

A `Request` is checked in two stages: what is wrong with any student (types, ranges) here, what is wrong with *this* student
(`resolve`) against its contract. Both end in a `UsageError` that says what is allowed.

Legend: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError
from distill_rt.core.noise import NUM_SEEDS
from distill_rt.core.spec import StudentSpec

MAX_IMAGES = 4096
"""Most images of one request: they are all in memory at once."""

_DRAWN_SEED_BYTES = 6
"""Seeds that we draw have 48 bits, so that every JSON reader holds them exactly."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One request, as the caller wrote it; None is "as the contract says".

    Args:
        labels: one for all images or one per image; only for a student that takes labels.
        prompts: one text for all images or one per image, for a student that takes text; the empty text asks for anything.
        seed: 0 to 2**64 - 1; image k draws its noise from seed + k (modulo 2**64). None draws one and reports it.
        num_images: 1 to `MAX_IMAGES`. None: as many as there are labels, prompts or latents, else 1.
        steps: one of the contract's plans.
        guidance: w within the contract, in the convention F_u + w (F_c - F_u).
        latents: the caller's own initial unit noise z, float32 (B, C, H, W), in place of the noise of stream 0. The
            seed then decides the noise of later steps only.

    Raises:
        UsageError: a value that no student would accept.
    """

    labels: tuple[int, ...] | None = None
    prompts: tuple[str, ...] | None = None
    seed: int | None = None
    num_images: int | None = None
    steps: int | None = None
    guidance: float | None = None
    latents: NDArray[np.float32] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.labels is not None:
            object.__setattr__(self, "labels", _labels(self.labels))
        if self.prompts is not None:
            object.__setattr__(self, "prompts", _prompts(self.prompts))
        if self.seed is not None:
            object.__setattr__(self, "seed", _integer("seed", self.seed, 0, NUM_SEEDS - 1))
        if self.num_images is not None:
            object.__setattr__(self, "num_images", _integer("num_images", self.num_images, 1, MAX_IMAGES))
        if self.steps is not None:
            object.__setattr__(self, "steps", _integer("steps", self.steps, 1, None))
        if self.guidance is not None:
            object.__setattr__(self, "guidance", _number("guidance", self.guidance))
        if self.latents is not None and (not isinstance(self.latents, np.ndarray) or self.latents.ndim != 4):
            raise UsageError(
                f"latents must be an array (B, C, H, W), got {_describe(self.latents)}",
                code="latents-shape",
                hint="give unit normal noise, one (C, H, W) per image",
            )

    def resolve(self, spec: StudentSpec) -> Request:
        """The same request with nothing left open, checked against a contract.

        Raises:
            UsageError: outside of the contract; the message lists what is allowed.
        """
        num_images = self._count()
        prompts = spec.check_prompts(self.prompts, num_images)
        labels = spec.check_labels(None if self.labels is None else list(self.labels), num_images)
        if self.latents is not None:
            _check_latents(self.latents, num_images, spec.sample_shape)
        return Request(
            labels=None if labels is None else tuple(labels),
            prompts=None if prompts is None else tuple(prompts),
            seed=int.from_bytes(os.urandom(_DRAWN_SEED_BYTES), "little") if self.seed is None else self.seed,
            num_images=num_images,
            steps=spec.check_steps(self.steps),
            guidance=_resolve_guidance(self.guidance, spec),
            latents=self.latents,
        )

    def _count(self) -> int:
        """Images asked for: num_images, else what labels, prompts and latents imply."""
        if self.latents is not None:
            count = _integer("the number of latents", len(self.latents), 1, MAX_IMAGES)
            if self.num_images not in (None, count):
                raise UsageError(
                    f"num_images={self.num_images}, but {count} latents were given",
                    code="latents-count",
                    hint="give one latent per image, or leave num_images out",
                )
            return count
        if self.num_images is not None:
            return self.num_images
        if self.prompts:
            return _integer("the number of prompts", len(self.prompts), 1, MAX_IMAGES)
        return _integer("the number of labels", len(self.labels), 1, MAX_IMAGES) if self.labels else 1

    def to_json(self) -> dict[str, Any]:
        """For reports and PNG text; latents are not stored, only that there were some."""
        return {
            "labels": None if self.labels is None else list(self.labels),
            "prompts": None if self.prompts is None else list(self.prompts),
            "seed": self.seed,
            "num_images": self.num_images,
            "steps": self.steps,
            "guidance": self.guidance,
            "own_latents": self.latents is not None,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What `Pipeline.generate` returns.

    Args:
        images: uint8 (B, H, W, C).
        seeds: seed of each image.
        labels: label of each image, or None for a student that takes none.
        prompts: prompt of each image, or None for a student that takes no text.
        cut_prompts: the end of each prompt that did not fit into the student's tokens, so that no image shows it; empty where
            all of it did.
        steps, guidance: what was used; guidance is None for a student that takes none.
        timings_ms: milliseconds of each stage: ``noise``, ``network`` (the engine calls alone), ``table`` (the step
            table, and guidance by two evaluations), ``pixels``, ``request`` (checks and bookkeeping), ``wait`` (for
            other requests), ``text`` (tokens, and the text encoder for prompts that are not in its cache), ``decode`` (latents
            to images, of previews too), ``callback`` and ``load`` (where there was one), and ``total``, their sum.
        engine: fingerprint of the engine.
        request: the request with nothing left open; it makes the same images again.
    """

    images: NDArray[np.uint8] = field(compare=False, repr=False)
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    prompts: tuple[str, ...] | None = None
    cut_prompts: tuple[str, ...] | None = None
    steps: int
    guidance: float | None
    timings_ms: Mapping[str, float]
    engine: str
    request: Request


@dataclass(frozen=True, kw_only=True, slots=True)
class StepUpdate:
    """What `on_step` receives after every row of the table.

    Args:
        row, num_rows: rows done and rows in the table.
        start: index of the first image within the request.
        preview: the images as the student predicts them now, uint8 (b, H, W, C); a copy.
    """

    row: int
    num_rows: int
    start: int
    preview: NDArray[np.uint8] = field(compare=False, repr=False)


def _resolve_guidance(guidance: float | None, spec: StudentSpec) -> float | None:
    w = spec.check_guidance(guidance)
    return None if spec.guidance.mode == "none" else w


def _integer(name: str, value: Any, low: int, high: int | None) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool | np.bool_):
        raise UsageError(f"{name} must be an integer, got {value!r:.40}", code=f"{_word(name)}-type")
    if number < low or (high is not None and number > high):
        allowed = f"at least {low}" if high is None else f"{low} to {'2**64 - 1' if high == NUM_SEEDS - 1 else high}"
        raise UsageError(
            f"{name} must be {allowed}, got {number}",
            code=f"{_word(name)}-out-of-range",
            hint="ask for the images in several requests" if high == MAX_IMAGES and number > high else "",
        )
    return number


def _word(name: str) -> str:
    return name.removeprefix("the number of ").removeprefix("a ").replace("_", "-")


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if isinstance(value, str | bytes | bytearray | bool | np.bool_) or not math.isfinite(number):
        raise UsageError(f"{name} must be a finite number, got {value!r:.40}", code=f"{name}-type")
    return number


def _labels(values: Any) -> tuple[int, ...]:
    is_list = isinstance(values, Sequence) and not isinstance(values, str | bytes | bytearray)
    if not is_list and not (isinstance(values, np.ndarray) and values.ndim == 1):
        got = _describe(values) if isinstance(values, np.ndarray) else f"{values!r:.40}"
        raise UsageError(
            f"labels must be a list of integers, got {got}",
            code="labels-type",
            hint="one label for all images is labels=[3]",
        )
    return tuple(_integer("a label", value, -NUM_SEEDS, None) for value in values)


def _prompts(values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(v, str) for v in values):
        raise UsageError(
            f"prompts must be a list of texts, got {values!r:.40}",
            code="prompts-type",
            hint="one prompt for all images is prompts=['...']",
        )
    for value in values:
        try:
            value.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, from bytes that were no text
            raise UsageError(
                f"a prompt is not valid Unicode: {value!r:.80}", code="prompts-type", hint="give text in UTF-8"
            ) from error
    return tuple(values)


def _check_latents(latents: NDArray[Any], num_images: int, sample_shape: tuple[int, int, int]) -> None:
    expected = (num_images, *sample_shape)
    if latents.dtype != np.float32 or latents.shape != expected:
        raise UsageError(
            f"latents must be a float32 array of shape {expected}, got {_describe(latents)}",
            code="latents-shape",
            hint="give unit normal noise, one (C, H, W) per image",
        )
    if not np.isfinite(latents).all():
        raise UsageError("latents hold infinities or NaN", code="latents-not-finite", hint="give unit normal noise")


def _describe(value: Any) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
