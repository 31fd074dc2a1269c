"""The blocks that a network is made of: what is sharded, and what is computed again, one at a time."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

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
        block.forward = functools.partial(_recomputed, block, block.forward)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    trained = [parameter.requires_grad for parameter in block.parameters()]

    def run(*args: Any, **kwargs: Any) -> Any:
        with _trained_as(block, trained):
            return forward(*args, **kwargs)

    return checkpoint(run, *args, use_reentrant=False, **kwargs)


@contextlib.contextmanager
def _trained_as(block: nn.Module, trained: Sequence[bool]) -> Iterator[None]:
    """Weights that were frozen for the forward pass (`frozen`) are frozen when it runs again: it must keep the same tensors."""
    changed = [p for p, was in zip(block.parameters(), trained, strict=True) if p.requires_grad != was]
    for parameter in changed:
        parameter.requires_grad_(not parameter.requires_grad)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(not parameter.requires_grad)
