"""A residual network for points, the smallest network that a method can be tried on (toy data such as the 25-Gaussian grid).

diffusers has none: its transformers normalise every token, which hides how far a point lies from the origin. Time embedding and
conditioning follow its UNet: sinusoidal features through `TimestepEmbedding`, the condition added to it.

Legend: B images, D elements of an image, E width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Output:
    """What diffusers' networks return: an object with `sample`."""

    sample: Tensor


class ResidualMLP(nn.Module):
    """Points (B, D, 1, 1) to points.

    Args:
        in_channels: D.
        width: E.
        num_blocks: residual blocks; the last layer starts at zero.
    """

    def __init__(self, in_channels: int, width: int = 128, num_blocks: int = 3) -> None:
        super().__init__()
        from diffusers.models.embeddings import TimestepEmbedding, Timesteps

        self.time_features = Timesteps(64, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(64, width)
        self.point = nn.Linear(in_channels, width)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(num_blocks))
        self.out = nn.Linear(width, in_channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, sample: Tensor, time_B: Tensor, class_labels: Tensor) -> Output:
        vector_BE = self.time_embedding(self.time_features(time_B).to(sample.dtype)) + class_labels
        hidden_BE = self.point(sample.flatten(1))
        for block in self.blocks:
            hidden_BE = block(hidden_BE, vector_BE)
        return Output(sample=self.out(nn.functional.silu(hidden_BE)).reshape(sample.shape))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.condition = nn.Linear(width, 2 * width)
        self.second = nn.Linear(width, width)

    def forward(self, hidden_BE: Tensor, vector_BE: Tensor) -> Tensor:
        shift, scale = self.condition(nn.functional.silu(vector_BE)).chunk(2, dim=1)
        inner = self.first(nn.functional.silu(hidden_BE)) * (1.0 + scale) + shift
        total: Tensor = (hidden_BE + self.second(nn.functional.silu(inner))) / math.sqrt(2.0)
        return total


def mlp_backbone(config: Mapping[str, Any]) -> tuple[nn.Module, int]:
    """`ResidualMLP`; the conditioning vector is as wide as its blocks."""
    net = ResidualMLP(**config)
    return net, net.point.out_features
