"""Decoders: latents to images. The encoder half of an autoencoder is not built, and its weights are not stored.

The scaling of the latent space is undone here, as diffusers' pipelines do before they call `decode`: z = x / scaling_factor
+ shift_factor, or x * std / scaling_factor + mean where the autoencoder has statistics per channel.

Legend: B images, C channels of a latent, H rows, W columns; the image is larger by the decoder's factor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class AutoencoderHalf(nn.Module):
    """A diffusers autoencoder without one of its halves, and the scaling of its latents.

    Args:
        backbone: the autoencoder; it loses the parts `dropped`.
    """

    mean_C11: Tensor
    std_C11: Tensor
    dropped: ClassVar[tuple[str, str]]

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        for part in self.dropped:
            if hasattr(backbone, part):
                delattr(backbone, part)
        self.backbone = backbone
        mean_C11, std_C11 = latent_statistics(backbone.config)
        self.register_buffer("mean_C11", mean_C11, persistent=False)
        self.register_buffer("std_C11", std_C11, persistent=False)


class LatentDecoder(AutoencoderHalf):
    """The decoding half: what `decode` gives of latents whose scaling is undone."""

    dropped = ("encoder", "quant_conv")

    def forward(self, latent_BCHW: Tensor) -> Tensor:
        """Images in about [-1, 1]."""
        out: Tensor = self.backbone.decode(latent_BCHW * self.std_C11 + self.mean_C11, return_dict=False)[0]
        return out


def latent_statistics(config: Any) -> tuple[Tensor, Tensor]:
    """Mean and scale (C, 1, 1) of what an autoencoder makes of images: a student's latents are those without both.

    Raises:
        ValueError: one of the statistics without the other, or not one value for each channel.
    """
    channels = config.latent_channels
    mean = getattr(config, "latents_mean", None)
    std = getattr(config, "latents_std", None)
    if (mean is None) != (std is None):
        raise ValueError("latents_mean and latents_std come together")
    shift = float(getattr(config, "shift_factor", None) or 0.0)
    mean_C = [shift] * channels if mean is None else list(mean)
    std_C = [1.0] * channels if std is None else list(std)
    if len(mean_C) != channels or len(std_C) != channels:
        raise ValueError(f"latents_mean and latents_std have one value for each of {channels} channels")
    return torch.tensor(mean_C)[:, None, None], torch.tensor(std_C)[:, None, None] / config.scaling_factor


def autoencoder_tiny(config: Mapping[str, Any]) -> LatentDecoder:
    """diffusers `AutoencoderTiny` (TAESD): fast, for previews and for students that were made for it."""
    from diffusers import AutoencoderTiny

    return LatentDecoder(AutoencoderTiny(**config))


def autoencoder_kl(config: Mapping[str, Any]) -> LatentDecoder:
    """diffusers `AutoencoderKL`, the decoder of Stable Diffusion."""
    from diffusers import AutoencoderKL

    return LatentDecoder(AutoencoderKL(**config))


DECODERS: Mapping[str, Callable[[Mapping[str, Any]], LatentDecoder]] = {
    "autoencoder_tiny": autoencoder_tiny,
    "autoencoder_kl": autoencoder_kl,
}
"""Kind -> function of the configuration."""
