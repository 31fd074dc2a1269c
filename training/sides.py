"""What stands beside the network of a run, does not train, and goes into the student as it is: text encoder and decoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_rt.core.errors import UsageError
from distill_rt.models import Student
from distill_rt.models.autoencoder import load_autoencoder
from distill_rt.training.data import Dataset, Source
from distill_rt.training.data.streamed import StreamedImages
from distill_rt.training.device import CPU
from distill_rt.training.latents import LatentSide
from distill_rt.training.parallel import Processes
from distill_rt.training.progress import Progress
from distill_rt.training.text import EmbeddedCaptions, TextSide


@dataclass(frozen=True, kw_only=True, slots=True)
class Sides:
    """Args: text: of contracts with prompts; latents: of contracts with a decoder."""

    text: TextSide | None = None
    latents: LatentSide | None = None

    @classmethod
    def of(cls, teacher: Student, autoencoder: Path | None) -> Sides:
        """Those of a loaded teacher.

        Args:
            autoencoder: directory of what made its latents.

        Raises:
            UsageError: an autoencoder for a teacher of pixels, or none for one of latents.
            ArtifactError: no autoencoder there.
        """
        if teacher.decoder is None and autoencoder is not None:
            raise UsageError(
                f"{teacher.path} works on pixels, which no autoencoder encodes",
                code="autoencoder-not-needed",
                hint="leave --autoencoder out",
            )
        if teacher.decoder is not None and autoencoder is None:
            raise UsageError(
                f"{teacher.path} works on latents, and a student directory holds no encoder to make them of images",
                code="autoencoder-missing",
                hint="say where it is: --autoencoder DIR, a diffusers AutoencoderKL or AutoencoderTiny (docs/training.md)",
            )
        latents = None
        if teacher.decoder is not None and autoencoder is not None:
            latents = LatentSide(load_autoencoder(autoencoder), teacher.decoder)
        return cls(text=TextSide.of(teacher), latents=latents)

    @property
    def null_text_LD(self) -> Tensor | None:
        """Embedding of the empty prompt."""
        return None if self.text is None else self.text.null_LD

    def to(self, device: torch.device) -> None:
        """Where images are encoded; captions are on the processor."""
        if self.latents is not None:
            self.latents.to(device)

    def dataset(self, source: Source, sample_shape: tuple[int, int, int], latents_directory: Path) -> Dataset:
        """The data as the network takes them.

        Raises:
            UsageError: an autoencoder that does not fit the decoder, or a directory of other latents.
        """
        dataset = source.dataset
        if self.text is not None and isinstance(dataset, StreamedImages) and dataset.captions_N is not None:
            self.text.check(dataset.captions_N)
        if self.latents is not None:
            self.latents.check(source, sample_shape)
            dataset = self.latents.dataset(source, sample_shape, latents_directory)
        return dataset if self.text is None else EmbeddedCaptions(dataset, self.text)

    def prepare(self, processes: Processes, progress: Progress | None) -> None:
        """Do once what training would repeat: encode the images of one's own. All processes call it.

        Raises:
            ResourceError: the disk is full or not writable.
        """
        if self.latents is None or self.latents.kept is None:
            return
        show = None if progress is None else lambda done, total: progress("latents", done, total, None)
        self.latents.kept.fill(rank=processes.rank, count=processes.count, wait=processes.wait, progress=show)
        self.latents.to(CPU)  # nothing is left to encode

    def notes(self, source: Source) -> list[str]:
        """What a person should know of the data beside `source.notes`, before another teacher is trained."""
        return [] if self.latents is None else self.latents.notes(source)

    def identity(self, source: Source) -> str:
        """Names the content of `dataset`."""
        return source.identity if self.latents is None else self.latents.identity(source.identity)

    def parts(self) -> dict[str, Any]:
        """Arguments of `save_student`."""
        parts: dict[str, Any] = {}
        if self.text is not None:
            parts |= {"text_encoder": self.text.encoder, "tokenizer": self.text.tokenizer}
        if self.latents is not None:
            parts["decoder"] = self.latents.decoder
        return parts
