"""A tiny student with text and latents, of the real classes: CLIP tokenizer and text encoder, conditional UNet, autoencoder.

Weights are random; sizes are what makes an export take seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from distill_rt.core.condition import Condition, Guidance
from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import VPLinear
from distill_rt.core.scheduler_config import table_from_scheduler_config
from distill_rt.core.spec import Decoder, NetworkSpec, StudentSpec
from distill_rt.models import build_decoder, build_network, build_text_encoder, save_student

NUM_TOKENS = 12
WIDTH = 16
LATENT = (4, 8, 8)
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
MERGES = ("c a", "ca t</w>", "d o", "do g</w>", "r e", "re d</w>", "t h", "th e</w>", "o n</w>")

UNET: dict[str, Any] = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "cross_attention_dim": WIDTH,
    "attention_head_dim": 2,
}
TINY_DECODER: dict[str, Any] = {
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "num_encoder_blocks": [1, 1],
    "num_decoder_blocks": [1, 1],
}
KL_DECODER: dict[str, Any] = {
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "block_out_channels": [8, 8],
    "norm_num_groups": 4,
    "scaling_factor": 0.25,
    "shift_factor": 0.1,
}
DECODERS = {"autoencoder_tiny": TINY_DECODER, "autoencoder_kl": KL_DECODER}


def make_tokenizer() -> Any:
    """CLIP's own tokenizer with a vocabulary of bytes and nine merges."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    merged = ["".join(merge.split()) for merge in MERGES]
    words = [*letters, *(f"{letter}</w>" for letter in letters), *merged, "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={word: i for i, word in enumerate(dict.fromkeys(words))},
        merges=[tuple(merge.split()) for merge in MERGES],
        model_max_length=NUM_TOKENS,
    )


def hf_tokens(tokenizer: Any, prompts: list[str]) -> Any:
    """What diffusers' pipelines feed the text encoder: int64 (B, L)."""
    return tokenizer(
        prompts, padding="max_length", max_length=NUM_TOKENS, truncation=True, return_tensors="np"
    ).input_ids


def text_spec(
    tokenizer: Any,
    *,
    guidance: Literal["none", "cfg", "embedded"] = "cfg",
    decoder: Literal["autoencoder_tiny", "autoencoder_kl"] | None = "autoencoder_tiny",
    **changes: Any,
) -> StudentSpec:
    """A contract of 1 and 2 steps of Stable Diffusion's DDIM scheduler."""
    process, parameterization = VPLinear(), Parameterization(prediction=Prediction.EPS)
    unet = UNET | ({"time_cond_proj_dim": 8, "guidance": True} if guidance == "embedded" else {})
    fields: dict[str, Any] = {
        "name": "tiny-text",
        "sample_shape": LATENT,
        "process": process,
        "parameterization": parameterization,
        "condition": Condition(
            kind="text",
            num_tokens=NUM_TOKENS,
            vocab_size=len(tokenizer),
            width=WIDTH,
            null_tokens=tuple(hf_tokens(tokenizer, [""])[0].tolist()),
        ),
        "guidance": Guidance() if guidance == "none" else Guidance(mode=guidance, min=1.0, max=8.0, default=3.0),
        "plans": {n: table_from_scheduler_config(SCHEDULER, n).as_float32() for n in (1, 2)},
        "default_steps": 2,
        "networks": (NetworkSpec(kind="unet2d_condition", config=unet),),
        "text_encoder": NetworkSpec(
            kind="clip_text",
            config={
                "vocab_size": len(tokenizer),
                "hidden_size": WIDTH,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "max_position_embeddings": NUM_TOKENS,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
        ),
        "decoder": None
        if decoder is None
        else Decoder(network=NetworkSpec(kind=decoder, config=DECODERS[decoder]), image_shape=(3, 16, 16)),
    }
    return StudentSpec(**(fields | changes))


def text_modules(spec: StudentSpec, seed: int = 0) -> dict[str, nn.Module]:
    """Components by name with random weights, none of them zero."""
    torch.manual_seed(seed)
    assert spec.text_encoder is not None
    modules: dict[str, nn.Module] = {
        "text_encoder": build_text_encoder(spec.text_encoder),
        "network0": build_network(spec.networks[0]),
    }
    if spec.decoder is not None:
        modules["decoder"] = build_decoder(spec.decoder.network)
    for module in modules.values():
        for parameter in module.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    nn.init.normal_(modules["text_encoder"].backbone.embeddings.token_embedding.weight, std=1.0)  # type: ignore[union-attr, arg-type]
    return modules


def write_text_student(path: Path, spec: StudentSpec, tokenizer: Any, seed: int = 0) -> Path:
    """A student directory; the tokenizer is saved as transformers does it."""
    files = path.with_suffix(".tokenizer")
    tokenizer.save_pretrained(files)
    modules = text_modules(spec, seed)
    save_student(
        path,
        spec,
        [modules["network0"]],
        text_encoder=modules["text_encoder"],
        decoder=modules.get("decoder"),
        tokenizer=files,
    )
    return path
