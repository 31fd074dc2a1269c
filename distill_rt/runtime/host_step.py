"""Step mode on the host: text encoder, sampler and decoder of one batch size, from tokens and seeds to pixels.

Previews of a student with a decoder are decoded like its images, once per row: who asks for previews wants to see them, and
pays for it (the stage ``decode``).

Legend: b images of this work, B images of the batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

import numpy as np

from distill_rt import kernels
from distill_rt.backends.base import Program
from distill_rt.backends.engine import Engine
from distill_rt.core.spec import DECODER, TEXT_ENCODER, StudentSpec
from distill_rt.runtime.sampler import Float32, Sampler
from distill_rt.runtime.text_cache import TextCache
from distill_rt.runtime.timing import Stopwatch
from distill_rt.runtime.worker import OnRow, Pixels, Work


class HostStepWorker:
    """A `Worker` whose programs read and write NumPy memory.

    Args:
        spec: the contract.
        programs: one for each of `spec.components()`: networks for `network_batch(spec, batch)` evaluations, the decoder for
            `batch` images, the text encoder for any number of prompts.
        batch: B.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, spec: StudentSpec, programs: Mapping[str, Program], batch: int) -> None:
        self._programs = tuple(programs.values())
        self._plans = spec.plans
        self._text = TextCache(programs[TEXT_ENCODER]) if TEXT_ENCODER in programs else None
        null_tokens = spec.condition.null_tokens
        self._sampler = Sampler(
            spec,
            [programs[f"network{i}"] for i in range(len(spec.networks))],
            batch,
            null_text=None if self._text is None or null_tokens is None else self._text.encode(null_tokens),
        )
        self._decoder = programs.get(DECODER)
        if self._decoder is not None:
            (self._latent,) = self._decoder.inputs.values()
            (self._image,) = self._decoder.outputs.values()

    @classmethod
    def load(cls, engine: Engine, batch: int) -> Self:
        """The worker of one compiled batch of an engine.

        Raises:
            TargetError: the backend's runtime refuses the files.
        """
        spec = engine.body.spec
        smallest = engine.body.batches[0]
        # Networks first: the largest part is loaded while nothing else takes memory, which is what loading peaks at.
        names = sorted(spec.components(), key=lambda name: name in (TEXT_ENCODER, DECODER))
        programs = {name: engine.load(name, smallest if name == TEXT_ENCODER else batch) for name in names}
        return cls(spec, programs, batch)

    def warm_up(self) -> None:
        """See `Worker.warm_up`."""
        for program in self._programs:
            program.run()

    def run(self, work: Work, out_BHWC: Pixels, watch: Stopwatch, on_row: OnRow | None = None) -> None:
        """See `Worker.run`."""
        text = None
        if self._text is not None:
            assert work.tokens is not None
            watch.lap("request")
            text = [self._text.encode(tokens) for tokens in work.tokens]
            watch.lap("text")
        num = len(out_BHWC)
        preview = None
        if on_row is not None:

            def preview(i: int, x0_BCHW: Float32) -> None:
                on_row(i, kernels.to_uint8(self._decode(x0_BCHW, watch)[:num]))

        x_BCHW = self._sampler.run(
            self._plans[work.steps],
            seeds=work.seeds,
            labels=work.labels,
            text=text,
            guidance=work.guidance,
            latents=work.latents,
            watch=watch,
            on_row=preview,
        )
        kernels.to_uint8(self._decode(x_BCHW, watch)[:num], out=out_BHWC)
        watch.lap("pixels")

    def _decode(self, x_BCHW: Float32, watch: Stopwatch) -> Float32:
        """Images in about [-1, 1]: the state itself, or what the decoder makes of it."""
        if self._decoder is None:
            return x_BCHW
        np.copyto(self._latent, x_BCHW)
        self._decoder.run()
        watch.lap("decode")
        image: Float32 = self._image
        return image
