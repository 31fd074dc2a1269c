"""What turns the images of data into the latents that a network moves: an autoencoder, beside the decoder of the student.

Legend: B images, C channels, H rows, W columns.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from distill_rt.core.errors import UsageError
from distill_rt.models.autoencoder import Autoencoder
from distill_rt.training.data import Dataset, Source
from distill_rt.training.data.latents import EncodedBatches, KeptLatents
from distill_rt.training.data.source import LATENTS
from distill_rt.training.data.streamed import StreamedImages
from distill_rt.training.device import CPU
from distill_rt.training.draws import Draws

NUM_CHECKED, NUM_MEASURED = 4, 8
MIN_EXPLAINED = 0.5
"""Share of the images' variance that must come back. The decoder's own encoder gives 0.9 and more; one of another space
gives colours that have little to do with the image."""
FLAT = 1e-4
"""Variance of images below which there is nothing to compare."""
USUAL_STD = (0.5, 2.0)


class LatentSide:
    """Images to latents and back; neither half trains.

    Args:
        decoder: that of the student, which need not be the autoencoder's (a tiny one for previews).
    """

    def __init__(self, autoencoder: Autoencoder, decoder: nn.Module) -> None:
        self.autoencoder, self.decoder = autoencoder, decoder
        self._device = CPU
        self.kept: KeptLatents | None = None
        """The data, if they are images of one's own."""

    def to(self, device: torch.device) -> None:
        self._device = device
        self.autoencoder.encoder.to(device)

    @torch.no_grad()
    def encode(self, image_BCHW: Tensor) -> Tensor:
        """Latents of images in [-1, 1], on the processor."""
        latent_BCHW: Tensor = self.autoencoder.encoder(image_BCHW.to(self._device)).cpu()
        return latent_BCHW

    @torch.no_grad()
    def decode(self, latent_BCHW: Tensor) -> Tensor:
        """Images of latents, both on the processor, one after the other: pixels take much memory inside of a decoder."""
        return torch.cat([self.decoder(latent_BCHW[i : i + 1]) for i in range(len(latent_BCHW))])

    def identity(self, images: str) -> str:
        """Names the latents of images that are named like that."""
        return f"{LATENTS}{self.autoencoder.digest}:{images}"

    def check(self, source: Source, sample_shape: tuple[int, int, int]) -> None:
        """Encode and decode a few images.

        Raises:
            UsageError: latents of another shape, or the decoder does not give the images back.
        """
        path = self.autoencoder.path
        image_BCHW = source.dataset.batch(Draws(0, 0, NUM_CHECKED)).x0_BCHW
        if image_BCHW.shape[1] != self.autoencoder.image_channels:
            raise _mismatch(
                f"{path} encodes images of {self.autoencoder.image_channels} channels, these have {image_BCHW.shape[1]}"
            )
        latent_BCHW = self.encode(image_BCHW)
        if latent_BCHW.shape[1:] != sample_shape:
            theirs, ours = ("x".join(map(str, shape)) for shape in (latent_BCHW.shape[1:], sample_shape))
            raise _mismatch(f"{path} makes latents of {theirs} (channels x height x width), the teacher's are {ours}")
        error, variance = float((self.decode(latent_BCHW) - image_BCHW).square().mean()), float(image_BCHW.var())
        explained = 1.0 - error / variance if variance > FLAT else 1.0
        if not explained >= MIN_EXPLAINED:
            raise _mismatch(
                f"the decoder does not give back what {path} encodes: {explained:.2f} of the variance of "
                f"{NUM_CHECKED} images, at least {MIN_EXPLAINED} is expected"
            )

    def notes(self, source: Source) -> list[str]:
        """What a person should know before a network learns these latents."""
        std = float(self.encode(source.dataset.batch(Draws(0, 0, NUM_MEASURED)).x0_BCHW).std())
        if USUAL_STD[0] <= std <= USUAL_STD[1]:
            return []
        factor = float(self.autoencoder.encoder.backbone.config.scaling_factor)
        return [
            f"the latents have a standard deviation of {std:.2g} where noise processes expect about 1: "
            f"scaling_factor in {self.autoencoder.path}/config.json is {factor:.4g}, {factor / max(std, 1e-6):.4g} would give 1"
        ]

    def dataset(self, source: Source, sample_shape: tuple[int, int, int], directory: Path) -> Dataset:
        """The data as latents; those of images of one's own are kept in `directory`.

        Raises:
            UsageError: `directory` holds other latents.
        """
        if not isinstance(source.dataset, StreamedImages):
            return EncodedBatches(source.dataset, self.encode, sample_shape)
        self.kept = KeptLatents(
            source.dataset, self.encode, sample_shape, directory=directory, made_by=self.autoencoder.digest
        )
        return self.kept


def _mismatch(problem: str) -> UsageError:
    return UsageError(
        problem, code="autoencoder-mismatch", hint="give the autoencoder whose latents the teacher learned"
    )
