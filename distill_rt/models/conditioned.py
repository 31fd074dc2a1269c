"""One conditioning vector for every backbone: label, guidance scale and second time.

diffusers' `UNet2DModel` and `DiTTransformer2DModel` add a class embedding to the time embedding. Here the class embedding
is the identity, so its input is a vector of our own: the sum of a label embedding and of one branch for each extra
scalar. A branch ends in a zero-initialised layer, so that a student that gets a new input starts as exactly its
teacher (Meng et al. 2023, arXiv 2210.03142, section 3.1 feed w in the same way).

Legend: B images, C channels, H rows, W columns, E width of the conditioning vector.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class ScalarBranch(nn.Module):
    """A scalar per image to a vector of width E, zero at the start.

    Features are low-frequency (0.25 to 8 radians per `scale`): fast ones make a network vary wildly between the values it
    was trained on, and break every method that differentiates in time.
    """

    frequencies: Tensor

    def __init__(self, width: int, num_frequencies: int = 16, *, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        frequencies = torch.exp(torch.linspace(math.log(0.25), math.log(8.0), num_frequencies))
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.hidden = nn.Linear(2 * num_frequencies, width)
        self.out = nn.Linear(width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, value_B: Tensor) -> Tensor:
        angle = value_B[:, None] * (self.frequencies / self.scale)
        features = torch.cat([angle.sin(), angle.cos()], dim=1)
        out: Tensor = self.out(nn.functional.silu(self.hidden(features)))
        return out


class ConditionedNetwork(nn.Module):
    """A diffusers backbone with the inputs of a contract, in the order of `StudentSpec.network_inputs`.

    Args:
        backbone: takes (sample, time, class_labels=vector) and returns an object with ``.sample``.
        width: E.
        num_labels: labels including the null label; 0 takes no label.
        guidance: takes the guidance scale w as an input.
        second_time: takes the target time as an input; the number is how many of the network's time units make one unit of
            process time (True is 1).
    """

    def __init__(
        self, backbone: nn.Module, width: int, *, num_labels: int = 0, guidance: bool = False, second_time: float = 0.0
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.width = width
        self.label = nn.Embedding(num_labels, width) if num_labels else None
        if self.label is not None:
            nn.init.normal_(self.label.weight, std=0.02)
        self.second_time = ScalarBranch(width, scale=float(second_time)) if second_time else None
        self.guidance = ScalarBranch(width) if guidance else None
        branches = {"second_time": self.second_time, "label": self.label, "guidance": self.guidance}
        self.condition_names = tuple(name for name, branch in branches.items() if branch is not None)
        """Inputs after sample and time, in order, by their names in the contract."""

    def forward(self, sample_BCHW: Tensor, time_B: Tensor, *conditions: Tensor) -> Tensor:
        """Raw prediction, shape (B, C, H, W).

        Args:
            sample_BCHW: scaled state.
            time_B: in the network's own units.
            conditions: second time (B,), label (B,) int64, guidance (B,): those that this network takes, in this order.

        Raises:
            ValueError: another number of conditions.
        """
        if len(conditions) != len(self.condition_names):
            raise ValueError(f"this network takes {self.condition_names} after sample and time, got {len(conditions)}")
        values = iter(conditions)
        vector = torch.zeros(len(sample_BCHW), self.width, dtype=sample_BCHW.dtype, device=sample_BCHW.device)
        if self.second_time is not None:
            vector = vector + self.second_time(next(values))
        if self.label is not None:
            vector = vector + self.label(next(values))
        if self.guidance is not None:
            vector = vector + self.guidance(next(values))
        out: Tensor = self.backbone(sample_BCHW, time_B, class_labels=vector).sample
        return out


def unet_backbone(config: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """diffusers `UNet2DModel`; the conditioning vector is as wide as its time embedding (4 x the first block)."""
    from diffusers import UNet2DModel

    net = UNet2DModel(**config, class_embed_type="identity")
    # Convolutions of small images are faster on CPUs (and on tensor cores) with the channels innermost.
    return net.to(memory_format=torch.channels_last), 4 * net.config.block_out_channels[0]


def dit_backbone(config: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """diffusers `DiTTransformer2DModel`, its label tables replaced by our conditioning vector."""
    from diffusers import DiTTransformer2DModel

    net = DiTTransformer2DModel(**config, num_embeds_ada_norm=1)
    for block in net.transformer_blocks:
        # Each block owns a label table that drops labels at random while training; our vector comes ready made.
        block.norm1.emb.class_embedder = nn.Identity()
    return _KeywordTime(net), net.config.num_attention_heads * net.config.attention_head_dim


class _KeywordTime(nn.Module):
    """`DiTTransformer2DModel` takes its time by keyword only in some releases; this fixes one calling convention."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, sample_BCHW: Tensor, time_B: Tensor, class_labels: Tensor) -> Any:
        return self.net(sample_BCHW, timestep=time_B, class_labels=class_labels)
