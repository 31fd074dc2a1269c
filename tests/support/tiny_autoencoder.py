"""A small autoencoder of diffusers' own class that gives images back: 16x16 pixels of one colour to 8x8 latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SIZE_PX, FACTOR = 16, 2


def colours(num: int, seed: int = 0) -> Tensor:
    """Images (N, 3, 16, 16) in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(num, 3, 1, 1, generator=generator) * 2 - 1).expand(num, 3, SIZE_PX, SIZE_PX).contiguous()


def write_autoencoder(path: Path, *, seed: int = 0, iterations: int = 600, **config: Any) -> Path:
    """Trained for seconds and saved by `save_pretrained`."""
    from diffusers import AutoencoderTiny

    torch.set_num_threads(1)  # a fixture of a module comes before the one that does it for each test
    torch.manual_seed(seed)
    blocks = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    numbers = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1), "upsampling_scaling_factor": FACTOR}
    autoencoder = AutoencoderTiny(**blocks, **numbers, **config)
    optimizer = torch.optim.Adam(autoencoder.parameters(), 5e-3)
    for i in range(iterations):
        images = colours(16, seed=i + 1)
        (z,) = autoencoder.encode(images, return_dict=False)
        (back,) = autoencoder.decode(z, return_dict=False)
        loss = (back - images).square().mean() + 0.02 * (z.std() - 1).square()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    autoencoder.save_pretrained(path)
    return path


def write_images(root: Path, num: int = 10) -> Path:
    """A folder with images of one colour each."""
    root.mkdir(parents=True)
    pixels: NDArray[np.uint8] = ((colours(num, seed=5).numpy() + 1) * 127.5).round().astype(np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image.transpose(1, 2, 0)).save(root / f"{i:02d}.png")
    return root
