"""Networks that read a prompt's embedding: diffusers classes with the inputs of a contract.

Legend: B images, C channels, H rows, W columns, L tokens, D elements of one token's embedding,
E width of the guidance embedding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn


class TextConditionedUNet(nn.Module):
    """diffusers `UNet2DConditionModel`: sample, time, text and, for students with embedded guidance, w.

    Args:
        backbone: `UNet2DConditionModel`.
        guidance: takes the guidance scale w as an input, embedded as latent consistency models do (Luo et al. 2023, arXiv
            2310.04378); the network must have `time_cond_proj_dim`.
    """

    def __init__(self, backbone: nn.Module, *, guidance: bool = False) -> None:
        super().__init__()
        self.backbone = backbone
        config: Any = backbone.config
        if guidance != (config.time_cond_proj_dim is not None):
            raise ValueError("time_cond_proj_dim is for networks that take guidance, and they need it")
        for name in ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type"):
            if getattr(config, name) is not None:
                raise ValueError(f"{name}={getattr(config, name)!r} wants an input that no contract has")
        self.guidance_width: int | None = config.time_cond_proj_dim
        self.text_width: int = config.encoder_hid_dim or config.cross_attention_dim
        """D."""
        self.condition_names = ("text", "guidance") if guidance else ("text",)
        """Inputs after sample and time, in order, by their names in the contract."""

    def forward(self, sample_BCHW: Tensor, time_B: Tensor, text_BLD: Tensor, *guidance: Tensor) -> Tensor:
        """Raw prediction, shape (B, C, H, W).

        Args:
            sample_BCHW: scaled state.
            time_B: in the network's own units, float.
            text_BLD: embeddings of the prompts.
            guidance: w (B,), if this network takes it.
        """
        if len(guidance) != len(self.condition_names) - 1:
            raise ValueError(f"this network takes {self.condition_names} after sample and time")
        embedded = None
        if self.guidance_width is not None:
            embedded = _guidance_embedding(guidance[0], self.guidance_width)
        out: Tensor = self.backbone(sample_BCHW, time_B, text_BLD, timestep_cond=embedded).sample
        return out


def _guidance_embedding(w_B: Tensor, width: int) -> Tensor:
    """Sinusoidal features (B, E) of 1000 (w - 1).

    Latent consistency models embed the w of eps_c + w (eps_c - eps_u), which is ours minus one, times 1000
    (`get_guidance_scale_embedding` of diffusers' LatentConsistencyModelPipeline, after arXiv 2107.00630).
    """
    half = width // 2
    exponents = torch.arange(half, dtype=torch.float32, device=w_B.device) * -(math.log(10000.0) / (half - 1))
    angle = 1000.0 * (w_B[:, None] - 1.0) * exponents.exp()
    features = torch.cat([angle.sin(), angle.cos()], dim=1)
    return nn.functional.pad(features, (0, width % 2))


def unet2d_condition(config: Mapping[str, Any], *, guidance: bool = False) -> TextConditionedUNet:
    """diffusers `UNet2DConditionModel`."""
    from diffusers import UNet2DConditionModel

    return TextConditionedUNet(UNet2DConditionModel(**config), guidance=guidance)


TEXT_NETWORKS: Mapping[str, Callable[..., TextConditionedUNet]] = {"unet2d_condition": unet2d_condition}
"""Kind -> function of the configuration, and of what beside it decides the inputs."""
