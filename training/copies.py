"""Copies of a network beside the one that trains: exponential averages and frozen ones."""

from __future__ import annotations

import copy

import torch
from torch import nn


def frozen_copy(network: nn.Module) -> nn.Module:
    """A copy in evaluation mode that takes no gradients."""
    return copy.deepcopy(network).eval().requires_grad_(False)


@torch.no_grad()
def assign(target: nn.Module, source: nn.Module) -> None:
    """Copy every weight and buffer of `source` into `target`."""
    target.load_state_dict(source.state_dict())


@torch.no_grad()
def average_into(target: nn.Module, source: nn.Module, decay: float) -> None:
    """``target = decay * target + (1 - decay) * source`` for weights; buffers are copied."""
    pairs = [(t.data, s.data) for t, s in zip(target.parameters(), source.parameters(), strict=True)]
    torch._foreach_lerp_([t for t, _ in pairs], [s for _, s in pairs], 1.0 - decay)
    for t, s in zip(target.buffers(), source.buffers(), strict=True):
        t.copy_(s)


def warmed_decay(decay: float, step: int) -> float:
    """The decay of an average that forgets its start: min(decay, (1 + step) / (10 + step))."""
    return min(decay, (1.0 + step) / (10.0 + step))


def power_decay(gamma: float, step: int) -> float:
    """The decay of the power-function average, ``(1 - 1/t)^(gamma + 1)`` with t = step + 1.

    Karras et al. 2024 (EDM2, arXiv 2312.02696), section 3.1: the average weighs the weights after update tau as tau^gamma, so
    that it forgets its start and grows as wide as training is long; gamma 6.94 is a relative width of 10 %, 16.97 of 5 %.
    """
    return float((1.0 - 1.0 / (step + 1.0)) ** (gamma + 1.0))
