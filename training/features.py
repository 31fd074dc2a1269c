"""Intermediate features of two networks and how far they are apart.

Every distance is relative (a scaled copy of a network at any scale gives the same figure), so that no stage and no term drowns
the others (Zhang et al. 2024, LAPTOP-Diff, arXiv 2404.11098, section 3.3, divide by the teacher's norm likewise).

Legend: B images, C channels (S of the student, T of the teacher), any trailing positions (H, W or none).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill_rt.core.errors import UsageError
from distill_rt.training.compiled import is_compiled

FeatureLoss = Literal["none", "hint", "attention", "similarity", "relational"]


@contextlib.contextmanager
def tapped(network: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """While the context is open, a forward pass fills the dictionary with the named modules' outputs, (B, C, ...).

    Raises:
        UsageError: the network is compiled.
    """
    names = list(names)
    outputs: dict[str, Tensor] = {}
    if names and is_compiled(network):
        raise UsageError(
            "features are read inside of a network, which a compiled one does not show",
            code="setting-invalid",
            hint="leave --compile out, or use --set features=none",
        )

    def keep(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            # Down stages return (state, skip connections); transformers (B, tokens, C).
            state = output[0] if isinstance(output, tuple) else output
            # Under bfloat16 autocast too: what is compared is small beside what it is a difference of.
            outputs[name] = (state.movedim(-1, 1) if state.ndim == 3 else state).float()

        return hook

    handles = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


class Hint(nn.Module):
    """A learned 1x1 projection of the student's channels to the teacher's (the regressor of Romero et al. 2015).

    Args:
        kept: (S, T) zeros and ones, which of the teacher's channels the student's once were: where the projection starts.
    """

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(kept.T.clone())

    def forward(self, features: Tensor) -> Tensor:
        projected: Tensor = torch.einsum("ts,bs...->bt...", self.weight, features)
        return projected


def relative_error(a: Tensor, b: Tensor) -> Tensor:
    """``mean |a - b|^2 / mean |b|^2``, a scalar; gradients through `a` only."""
    b = b.detach()
    return (a - b).square().mean() / b.square().mean().clamp(min=1e-12)


def hint_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Features themselves, after a `Hint` where widths differ: FitNets (Romero et al. 2015, arXiv 1412.6550, equation 3)."""
    return relative_error(student, teacher)


def attention_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Where the energy is: ``|Q_s/|Q_s| - Q_t/|Q_t||^2``, Q = sum over channels of squares, flat over positions.

    Zagoruyko & Komodakis 2017 (arXiv 1612.03928), equation 2 with p = 2 and squared. Features must
    have positions: (B, C, H, W) or (B, C, tokens).
    """
    maps = [F.normalize(f.square().sum(dim=1).flatten(1), dim=1) for f in (student, teacher.detach())]
    return (maps[0] - maps[1]).square().sum(dim=1).mean()


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Which images of the batch look alike: ``|G_s - G_t|^2 / B``, rows of G = F F^T normalised, F (B, all features).

    Tung & Mori 2019 (arXiv 1907.09682), equation 4; over B where they divide by B^2, because normalised rows have norm 1.
    """
    flat = [f.flatten(1) for f in (student, teacher.detach())]
    grams = [F.normalize(f @ f.T, dim=1) for f in flat]
    return (grams[0] - grams[1]).square().sum() / len(student)


def relational_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Distances between images and angles of three of them: ``huber(D_s - D_t) + 2 huber(A_s - A_t)``.

    Park et al. 2019 (RKD, arXiv 1904.05068), equations 5 to 9, with the ratio of their metric learning runs. D are distances
    over their mean, A cosines; means are taken over pairs and triples of different images, of which there must be three.
    """
    num = len(student)
    (d_s, a_s), (d_t, a_t) = (_relations(f) for f in (student, teacher.detach()))
    distance = F.smooth_l1_loss(d_s, d_t, reduction="sum") / (num * (num - 1))
    angle = F.smooth_l1_loss(a_s, a_t, reduction="sum") / (num * (num - 1) * (num - 2))
    return distance + 2.0 * angle


def _relations(features: Tensor) -> tuple[Tensor, Tensor]:
    """Relative distances (B, B), and the cosine at image j between i and k (j, i, k); 0 where images coincide.

    From the Gram matrix: the differences themselves would be B^2 images.
    """
    flat = features.flatten(1)
    flat = flat - flat.mean(dim=0)
    flat = flat / flat.square().sum(dim=1).mean().clamp(min=1e-12).sqrt()
    gram = flat @ flat.T
    square = gram.diagonal()
    apart = ~torch.eye(len(flat), dtype=torch.bool, device=flat.device)
    distance = (square[:, None] + square[None, :] - 2.0 * gram).clamp(min=1e-6).sqrt()
    inner = gram[None, :, :] - gram[:, :, None] - gram[:, None, :] + square[:, None, None]
    cosine = inner / (distance[:, :, None] * distance[:, None, :])
    relative = distance / distance[apart].mean()
    three = apart[:, :, None] & apart[:, None, :] & apart[None, :, :]
    return relative.masked_fill(~apart, 0.0), cosine.masked_fill(~three, 0.0)


def _in_float32(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    """Its products too, which autocast would compute in bfloat16."""

    @functools.wraps(loss)
    def exact(student: Tensor, teacher: Tensor) -> Tensor:
        with torch.autocast(student.device.type, enabled=False):
            return loss(student.float(), teacher.float())

    return exact


LOSSES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hint": _in_float32(hint_loss),
    "attention": _in_float32(attention_loss),
    "similarity": _in_float32(similarity_loss),
    "relational": _in_float32(relational_loss),
}
