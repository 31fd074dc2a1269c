"""Autoencoders as diffusers saves them: images to latents for training, and the decoder that goes into a student.

A student keeps the decoding half only (`distill_rt.models.decoder`), so whoever trains one on images says where the whole is.

Legend: B images, C channels of a latent, H rows, W columns; the image is larger by the encoder's factor.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill_rt.core.errors import ArtifactError
from distill_rt.core.spec import NetworkSpec
from distill_rt.models.decoder import AutoencoderHalf, LatentDecoder
from distill_rt.models.networks import build_decoder

KINDS = {"AutoencoderTiny": "autoencoder_tiny", "AutoencoderKL": "autoencoder_kl"}
"""Class of diffusers -> kind of decoder."""
CONFIG, IN_A_PIPELINE = "config.json", "vae"
HINT = (
    "give a directory that save_pretrained of AutoencoderKL or AutoencoderTiny wrote, or a pipeline's with one in vae/"
)


class LatentEncoder(AutoencoderHalf):
    """The encoding half: images to what `LatentDecoder` takes.

    Of an encoder that gives a distribution the mode is taken: its spread is far below that of the latents.
    """

    dropped = ("decoder", "post_quant_conv")

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Latents of images in [-1, 1]."""
        (encoded,) = self.backbone.encode(image_BCHW, return_dict=False)
        z_BCHW: Tensor = encoded if isinstance(encoded, Tensor) else encoded.mode()
        return (z_BCHW - self.mean_C11) / self.std_C11


@dataclass(frozen=True, kw_only=True, slots=True)
class Autoencoder:
    """Both halves, frozen.

    Args:
        network: kind and configuration of the decoder, for a contract.
        digest: names configuration and weights.
    """

    encoder: LatentEncoder
    decoder: LatentDecoder
    network: NetworkSpec
    digest: str
    path: Path

    @property
    def image_channels(self) -> int:
        return int(self.encoder.backbone.config.in_channels)

    @property
    def latent_channels(self) -> int:
        return int(self.encoder.backbone.config.latent_channels)

    @torch.no_grad()
    def image_shape(self, latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C', H', W') of the image of a latent."""
        channels, height, width = self.decoder(torch.zeros(1, *latent_shape)).shape[1:]
        return channels, height, width


def load_autoencoder(path: Path) -> Autoencoder:
    """Load what ``save_pretrained`` wrote; a directory of a pipeline has it in ``vae/``.

    Raises:
        ArtifactError: nothing of that sort, a class that this version does not know, or weights that are missing or do not fit.
    """
    directory = path / IN_A_PIPELINE if (path / IN_A_PIPELINE / CONFIG).is_file() else path
    kind, found = _class_of(directory)
    import diffusers

    autoencoder_class: Any = getattr(diffusers, found)
    try:
        backbone, report = autoencoder_class.from_pretrained(
            str(directory), local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(
            f"{directory} cannot be loaded as {found}: {reason:.300}", code="autoencoder-invalid", hint=HINT
        ) from error
    # diffusers leaves what it does not find at random, and says so in a log.
    wrong = {name: report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[name]}
    if wrong:
        what, names = next(iter(wrong.items()))
        raise ArtifactError(
            f"the weights in {directory} do not fit their configuration: {what.replace('_', ' ')}, the first {names[0]}",
            code="autoencoder-invalid",
            hint=HINT,
        )
    backbone = backbone.float()
    arguments = inspect.signature(autoencoder_class.__init__).parameters
    config = {key: value for key, value in json.loads(backbone.to_json_string()).items() if key in arguments}
    network = NetworkSpec(kind=kind, config=config)
    decoder = build_decoder(network)
    weights = backbone.state_dict()
    decoder.load_state_dict({name: weights[name.removeprefix("backbone.")] for name in decoder.state_dict()})
    return Autoencoder(
        encoder=LatentEncoder(backbone).eval().requires_grad_(False),
        decoder=decoder.eval().requires_grad_(False),
        network=network,
        digest=_digest(directory),
        path=directory,
    )


def _class_of(directory: Path) -> tuple[str, str]:
    """Kind of the decoder and class of diffusers that a directory was written by."""
    try:
        config = json.loads((directory / CONFIG).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{directory} holds no autoencoder: {CONFIG} cannot be read ({error})",
            code="autoencoder-missing",
            hint=HINT,
        ) from error
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name not in KINDS:
        raise ArtifactError(
            f"{directory / CONFIG} is of class {name!r:.80}; this version reads {', '.join(KINDS)}",
            code="autoencoder-unknown",
            hint=HINT,
        )
    return KINDS[name], name


def _digest(directory: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted([directory / CONFIG, *directory.glob("*.safetensors")]):
        with file.open("rb") as opened:
            digest.update(hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()[:32]
