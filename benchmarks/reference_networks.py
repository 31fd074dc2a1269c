"""The reference networks of the speed benchmarks: published shapes with seeded random weights, which cost what trained ones do.

`c10` is the CIFAR-10 DDPM (35.7 M parameters, 32x32, the configuration of google/ddpm-cifar10-32: one attention head) as a
student of 4 DDIM steps. `sdt` has the shape of SD-Turbo with a tiny decoder: a UNet of 866 M parameters on 64x64 latents, an
OpenCLIP-H text encoder (1024 wide, 23 layers), AutoencoderTiny, one step to 512x512 pixels.

    python benchmarks/reference_networks.py c10|sdt DIRECTORY    # writes the student directory
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill_rt.core.condition import Condition
from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import VPLinear
from distill_rt.core.scheduler_config import table_from_scheduler_config
from distill_rt.core.spec import Decoder, NetworkSpec, StudentSpec
from distill_rt.models import build_decoder, build_network, build_text_encoder, save_student

SEED = 0
C10_STEPS = 4
C10_UNET: Mapping[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
C10_SCHEDULER: Mapping[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}
"""The noise schedule of Ho et al. 2020 (arXiv 2006.11239, section 4). Trailing steps start at pure noise, as students do. v and
not noise: the x0 of a random network that predicts noise is some hundred times too large, and its PSNR says nothing."""


def c10_spec() -> StudentSpec:
    """The contract: 4 steps, no condition, no guidance."""
    table = table_from_scheduler_config(C10_SCHEDULER, C10_STEPS).as_float32()
    return StudentSpec(
        name="c10",
        sample_shape=(3, 32, 32),
        process=VPLinear(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"),
        parameterization=Parameterization(prediction=Prediction.V),
        plans={C10_STEPS: table},
        default_steps=C10_STEPS,
        networks=(NetworkSpec(kind="unet2d", config=dict(C10_UNET)),),
        provenance={"method": "random weights", "seed": SEED},
    )


def c10_network() -> nn.Module:
    """Our network class with its seeded weights."""
    torch.manual_seed(SEED)
    return build_network(c10_spec().networks[0]).eval().requires_grad_(False)


def c10_diffusers() -> nn.Module:
    """The same weights in the class that a diffusers pipeline runs, in PyTorch's default memory format."""
    from diffusers import UNet2DModel

    network = c10_network()
    unet = UNet2DModel(**C10_UNET)
    unet.load_state_dict(network.backbone.state_dict())  # type: ignore[union-attr]
    return unet.eval().requires_grad_(False)


def write_c10(path: Path) -> Path:
    """The student directory, written once: an existing one is taken as it is."""
    if not path.exists():
        save_student(path, c10_spec(), [c10_network()])
    return path


SDT_UNET: Mapping[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}
SDT_TEXT: Mapping[str, Any] = {
    "vocab_size": 49408,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "max_position_embeddings": 77,
    "hidden_act": "gelu",
}
SDT_SCHEDULER: Mapping[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}


SDT_TOKENS = 77


def sdt_tokenizer() -> Any:
    """CLIP's tokenizer class with bytes as its vocabulary: as many tokens as any other, 77."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=SDT_TOKENS)


def _null_tokens(tokenizer: Any) -> tuple[int, ...]:
    return tuple(tokenizer("", padding="max_length", max_length=SDT_TOKENS).input_ids)


def sdt_spec() -> StudentSpec:
    """The contract: one step, a prompt of 77 tokens, no guidance."""
    return StudentSpec(
        name="sdt",
        sample_shape=(4, 64, 64),
        process=VPLinear(),
        parameterization=Parameterization(prediction=Prediction.V),
        condition=Condition(
            kind="text", num_tokens=SDT_TOKENS, vocab_size=49408, width=1024, null_tokens=_null_tokens(sdt_tokenizer())
        ),
        plans={1: table_from_scheduler_config(SDT_SCHEDULER, 1).as_float32()},
        default_steps=1,
        networks=(NetworkSpec(kind="unet2d_condition", config=dict(SDT_UNET)),),
        text_encoder=NetworkSpec(kind="clip_text", config=dict(SDT_TEXT)),
        decoder=Decoder(network=NetworkSpec(kind="autoencoder_tiny"), image_shape=(3, 512, 512)),
        provenance={"method": "random weights", "seed": SEED},
    )


def sdt_network(component: str) -> nn.Module:
    """One of ``text_encoder``, ``network0``, ``decoder``, with its seeded weights."""
    spec = sdt_spec()
    assert spec.text_encoder is not None
    assert spec.decoder is not None
    torch.manual_seed(SEED)
    if component == "text_encoder":
        network: nn.Module = build_text_encoder(spec.text_encoder)
    elif component == "network0":
        network = build_network(spec.networks[0])
    else:
        network = build_decoder(spec.decoder.network)
    return network.eval().requires_grad_(False)


def write_sdt(path: Path) -> Path:
    """The student directory (5 GB), written once."""
    if not path.exists():
        files = path.with_suffix(".tokenizer")
        sdt_tokenizer().save_pretrained(files)
        text_encoder, network, decoder = (sdt_network(name) for name in ("text_encoder", "network0", "decoder"))
        save_student(path, sdt_spec(), [network], text_encoder=text_encoder, decoder=decoder, tokenizer=files)
    return path


WRITERS = {"c10": write_c10, "sdt": write_sdt}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=WRITERS)
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    WRITERS[args.name](args.directory)


if __name__ == "__main__":
    main()
