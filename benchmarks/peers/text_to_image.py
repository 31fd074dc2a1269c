"""Text to image in one step with the modules of diffusers and transformers, on different engines, from token ids to pixels.

Every function returns the three modules of a pipeline as callables on torch tensors: text encoder, UNet, decoder.
`openvino_files` is what optimum-intel does: every module converted once with static shapes, weights stored as float16.

Legend: B images, L tokens, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
Modules = Mapping[str, Callable[..., torch.Tensor]]
"""``text_encoder(tokens)``, ``network0(x, time, text)``, ``decoder(latent)``; float32 on both sides."""


def pipeline(modules: Modules, scheduler_config: Mapping[str, Any], noise_BCHW: Array) -> Callable[[Array], Array]:
    """The call of a diffusers pipeline, one step: tokens (B, L) to uint8 images (B, H, W, C)."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler.from_config(dict(scheduler_config))
    noise = torch.from_numpy(noise_BCHW)

    def call(tokens_BL: Array) -> Array:
        with torch.inference_mode():
            text = modules["text_encoder"](torch.from_numpy(tokens_BL))
            scheduler.set_timesteps(1)
            (time,) = scheduler.timesteps
            F = modules["network0"](noise, time.float().reshape(1), text)
            latent = scheduler.step(F, time, noise).prev_sample
            image = modules["decoder"](latent)
            pixels: Array = ((image / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return pixels

    return call


def eager(networks: Mapping[str, torch.nn.Module], dtype: torch.dtype) -> Modules:
    """Channels last, which is the faster layout here in both precisions."""

    def wrap(network: torch.nn.Module) -> Callable[..., torch.Tensor]:
        network = network.to(dtype).to(memory_format=torch.channels_last)

        def call(*arguments: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = network(
                *(a.to(dtype) if a.is_floating_point() and a.ndim > 1 else a for a in arguments)
            )
            return output.float()

        return call

    return {name: wrap(network) for name, network in networks.items()}


def convert_openvino(network: torch.nn.Module, examples: Sequence[torch.Tensor], file: Path) -> None:
    import openvino as ov

    shapes = [tuple(example.shape) for example in examples]
    model = ov.convert_model(network, example_input=tuple(examples), input=shapes)
    ov.save_model(model, str(file))


def openvino_files(files: Mapping[str, Path], num_threads: int, settings: Mapping[str, Any]) -> Modules:
    import openvino as ov

    core = ov.Core()
    threads = {"INFERENCE_NUM_THREADS": num_threads} if num_threads else {}

    def load(file: Path) -> Callable[..., torch.Tensor]:
        request = core.compile_model(str(file), "CPU", {**settings, **threads}).create_infer_request()

        def call(*arguments: torch.Tensor) -> torch.Tensor:
            (output,) = request.infer([a.numpy() for a in arguments], share_inputs=True).values()
            return torch.from_numpy(np.array(output))

        return call

    return {name: load(file) for name, file in files.items()}
