"""Autoencoders: what diffusers makes of images, and the errors of directories that hold none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from tiny_autoencoder import colours, write_autoencoder

from distill_rt.core.errors import ArtifactError
from distill_rt.models.autoencoder import load_autoencoder

KL: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
}


@pytest.mark.parametrize(
    "changes",
    [
        {"scaling_factor": 0.25, "shift_factor": 0.1},
        {"scaling_factor": 0.5, "latents_mean": [0.1, 0.2, 0.3, 0.4], "latents_std": [1.0, 2.0, 0.5, 1.5]},
    ],
)
def test_kl_latents_are_scaled_as_the_pipelines_do(tmp_path: Path, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    backbone = AutoencoderKL(**KL, **changes).eval()
    backbone.save_pretrained(tmp_path / "vae")  # as in a pipeline's directory
    loaded = load_autoencoder(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        z = backbone.encode(images).latent_dist.mode()
        if "latents_mean" in changes:  # StableDiffusionXLPipeline
            mean, std = (torch.tensor(changes[f"latents_{name}"]).view(1, 4, 1, 1) for name in ("mean", "std"))
            wanted = (z - mean) * changes["scaling_factor"] / std
        else:  # StableDiffusion3Pipeline
            wanted = (z - changes["shift_factor"]) * changes["scaling_factor"]
        latents = loaded.encoder(images)
        torch.testing.assert_close(latents, wanted)
        torch.testing.assert_close(loaded.decoder(latents), backbone.decode(z).sample)
    assert (loaded.network.kind, loaded.image_channels, loaded.latent_channels) == ("autoencoder_kl", 3, 4)
    assert loaded.encoder(torch.zeros(1, 3, 16, 24)).shape == (1, 4, 8, 12)
    assert loaded.image_shape((4, 8, 12)) == (3, 16, 24)
    json.dumps(loaded.network.config)  # goes into a contract


def test_digest_names_the_weights(tmp_path: Path) -> None:
    one, two = (write_autoencoder(tmp_path / name, seed=seed, iterations=0) for name, seed in (("a", 0), ("b", 1)))
    assert load_autoencoder(one).digest == load_autoencoder(one).digest != load_autoencoder(two).digest
    assert load_autoencoder(one).encoder(colours(1)).shape == (1, 4, 8, 8)


@pytest.mark.parametrize("what", ["nothing", "no json", "another class", "no weights", "a weight too few", "torn"])
def test_directories_without_one_are_refused(tmp_path: Path, what: str) -> None:
    path = tmp_path / "ae"
    if what != "nothing":
        write_autoencoder(path, iterations=0)
    weights, config = path / "diffusion_pytorch_model.safetensors", path / "config.json"
    if what == "no json":
        config.write_text("{")
    elif what == "another class":
        config.write_text(json.dumps({"_class_name": "UNet2DModel"}))
    elif what == "no weights":
        weights.unlink()
    elif what == "a weight too few":
        state = load_file(weights)
        state.pop("decoder.layers.0.weight")
        save_file(state, weights, {"format": "pt"})
    elif what == "torn":
        weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ArtifactError) as caught:
        load_autoencoder(path)
    assert caught.value.code in {"autoencoder-missing", "autoencoder-unknown", "autoencoder-invalid"}
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message
