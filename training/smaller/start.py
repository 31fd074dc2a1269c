"""The smaller network with the big one's weights: kept blocks, and in them the channels with the largest weights.

A group's channels are scored by the squared norm of everything that reads or writes them (Li et al. 2017, arXiv 1608.08710,
extended to coupled tensors by Fang et al. 2023, arXiv 2301.12900, section 3.3). Every norm group loses equally many, so that
those that stay are normalised together as before; a concatenated input keeps that exactly where its two parts are equally
wide. Of attention heads the weakest go as a whole. Sinusoidal time features are not learned: the weights of a removed
frequency are added to those of the nearest one that stays.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distill_rt.core.spec import NetworkSpec
from distill_rt.models import build_network
from distill_rt.training.smaller.layout import TIME_FEATURES, Axis, Layout, layout_of
from distill_rt.training.smaller.origin import Origin


@dataclass(frozen=True, kw_only=True, slots=True)
class Smaller:
    """A smaller network and how it hangs together with the big one.

    Args:
        network: takes gradients.
        taps: names of modules whose outputs correspond, of the smaller network's to the big one's.
        kept: for every tap, which channels of the big output the small one has kept, (new, old) of zeros and ones; None
            where the width is the same.
    """

    network: nn.Module
    taps: Mapping[str, str]
    kept: Mapping[str, Tensor | None]


@torch.no_grad()
def smaller_network(big: nn.Module, big_spec: NetworkSpec, spec: NetworkSpec) -> Smaller:
    """The network of `spec` (from `smaller_spec`) with weights of `big`; with equal specs it is `big`'s equal."""
    network = build_network(spec)
    origin = Origin(big_spec, spec)
    layout, weights, target = layout_of(big_spec, big), big.state_dict(), network.state_dict()
    axes = {name: layout.axes.get(origin.of(name), ()) for name in target}
    sizes = _sizes(axes, target)
    small_blocks = {origin.of(group): n for group, n in layout_of(spec, network).blocks.items()}
    maps = {TIME_FEATURES: _fold(weights, sizes[TIME_FEATURES])} if TIME_FEATURES in sizes else {}
    for group, score in _scores(layout, weights).items():
        blocks = layout.blocks.get(group, 1)
        maps[group] = _selection(score, blocks, small_blocks.get(group, blocks), sizes.get(group, len(score)))
    network.load_state_dict({name: _gather(weights[origin.of(name)], axes[name], maps) for name in target})
    taps = origin.taps()
    kept = {name: None if tap.group is None else maps[tap.group] for name, tap in taps.items()}
    return Smaller(
        network=network,
        taps={name: tap.of for name, tap in taps.items()},
        kept={name: None if m is None or m.shape[0] == m.shape[1] else m for name, m in kept.items()},
    )


def _sizes(axes: Mapping[str, tuple[Axis, ...]], tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Channels of every group, read off an axis that it has to itself; positions of a kernel have no name."""
    named = [(axis, n) for name in axes if name in tensors for axis, n in zip(axes[name], tensors[name].shape)]  # noqa: B905
    return {axis[0]: n for axis, n in named if len(axis) == 1}


def _scores(layout: Layout, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """For every group, the squared norm of each of its channels over all tensors that name it."""
    sizes = _sizes(layout.axes, weights)
    scores: dict[str, Tensor] = defaultdict(lambda: torch.zeros(()))
    for name, axes in layout.axes.items():
        if name in weights:
            for dim, axis in enumerate(axes):
                squares = weights[name].double().square().movedim(dim, 0)
                squares = squares.reshape(len(squares), -1).sum(1)
                start = 0
                for group in axis:
                    size = sizes[group]
                    scores[group] = scores[group] + squares[start : start + size]
                    start += size
    scores.pop(TIME_FEATURES, None)
    return dict(scores)


def _selection(score: Tensor, blocks: int, new_blocks: int, new_size: int) -> Tensor:
    """Zeros and ones (new, old): the strongest `new_blocks` of equal runs, and in each equally many of the strongest."""
    by_block = score.reshape(blocks, -1)
    chosen = by_block.sum(1).topk(new_blocks).indices.sort().values
    inside = by_block[chosen].topk(new_size // new_blocks, dim=1).indices.sort(dim=1).values
    index = (chosen[:, None] * by_block.shape[1] + inside).flatten()
    selection: Tensor = torch.eye(len(score))[index]
    return selection


def _fold(weights: Mapping[str, Tensor], new_size: int) -> Tensor:
    """Zeros and ones (new, old): every frequency of a sinusoidal embedding to the nearest of a smaller one.

    Both halves (sines and cosines) hold frequencies ``10000^(-i/half)``, i = 0 ... half - 1.
    """
    half, new_half = weights["backbone.time_embedding.linear_1.weight"].shape[1] // 2, new_size // 2
    nearest = (torch.arange(half) * new_half / half).round().long().clamp(max=new_half - 1)
    one = torch.eye(new_half)[:, nearest]
    folding: Tensor = torch.block_diag(one, one)
    return folding


def _gather(weight: Tensor, axes: tuple[Axis, ...], maps: Mapping[str, Tensor]) -> Tensor:
    for dim, axis in enumerate(axes):
        if axis:
            matrix: Tensor = torch.block_diag(*(maps[group] for group in axis)).to(weight.dtype)
            weight = torch.tensordot(matrix, weight, dims=([1], [dim])).movedim(0, dim)
    return weight
