"""The blocks that a network is made of: what is sharded, and what is computed again, one at a time."""

from __future__ import annotations

import functools

from torch import nn
from torch.utils.checkpoint import checkpoint


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The outermost modules that stand in a list (stages of a UNet, layers of a transformer), and a UNet's middle."""
    blocks: list[nn.Module] = []
    for name, child in network.named_children():
        if isinstance(child, nn.ModuleList):
            blocks += list(child)
        elif name == "mid_block":
            blocks.append(child)
        else:
            blocks += blocks_of(child)
    return blocks


def recompute_in_backward(network: nn.Module) -> None:
    """Keep no activations of the inside of a block: its forward pass runs again in the backward one, in place.

    Training costs about a third more time; the numbers are the same (Chen et al. 2016, arXiv 1604.06174).
    """
    for block in blocks_of(network):
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
