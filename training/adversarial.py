"""What the adversarial methods share: losses of logits, a penalty on steep discriminators, heads on a teacher's features.

Generator and discriminator train in one optimiser step: their losses touch disjoint weights.

Legend: B images, H heads, C channels, P positions, E width of a head.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill_rt.kernels import unit_noise
from distill_rt.models.conditioned import ScalarBranch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.features import tapped
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.smaller.origin import Origin

STAGE = re.compile(r"backbone\.((down|up)_blocks\.\d+|mid_block)")
"""What diffusers names the stages of a UNet."""
AdversarialLoss = Literal["softplus", "hinge", "relativistic"]


class GeneratorAndDiscriminator(nn.Module):
    """What trains together: the student, and the network that tells its images from real ones, which is not exported."""

    def __init__(self, student: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.discriminator = discriminator


def discriminator_loss(kind: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """Mean over logits of any shape.

    ``softplus``: the logistic loss (Goodfellow et al. 2014, arXiv 1406.2661). ``hinge``: Lim & Ye 2017 (arXiv 1705.02894).
    ``relativistic``: the logistic loss of the difference of a real image and the fake one beside it (Jolicoeur-Martineau
    2019, arXiv 1807.00734).
    """
    if kind == "softplus":
        return (F.softplus(-real) + F.softplus(fake)).mean()
    if kind == "hinge":
        return (F.relu(1.0 - real) + F.relu(1.0 + fake)).mean()
    return F.softplus(fake - real).mean()


def generator_loss(kind: AdversarialLoss, real: Tensor, fake: Tensor) -> Tensor:
    """Not saturating: its gradient is largest where the discriminator is sure."""
    if kind == "softplus":
        return F.softplus(-fake).mean()
    if kind == "hinge":
        return -fake.mean()
    return F.softplus(real.detach() - fake).mean()


def steepness(logits: Tensor, nearby: Tensor, distance: float) -> Tensor:
    """Mean squared slope of the discriminator between each image and that image plus `distance` times unit noise.

    Its expectation is |gradient|^2, what R1 penalises (Mescheder et al. 2018, arXiv 1801.04406), without a second backward
    pass (Lin et al. 2025, arXiv 2501.08316).
    """
    return ((nearby - logits) / distance).square().mean()


def stage_ends(teacher: Teacher) -> tuple[str, ...]:
    """Names of the modules of the first network whose outputs end a stage (or a block, where there are no stages)."""
    network = teacher.spec.networks[0]
    if network.kind == "unet2d_condition":  # `Origin` knows the networks that can be made smaller, which these cannot
        return tuple(name for name, _ in teacher.network.named_modules() if STAGE.fullmatch(name))
    return tuple(Origin(network, network).taps())


class FeatureJudge(nn.Module):
    """Logits from a frozen teacher's features, one head at the end of every stage (Sauer et al. 2024, LADD).

    Args:
        teacher: whose features are read; it is no part of this module.
        tells_steps: whether the heads are told which of several steps made an image.
        width: E.
    """

    def __init__(self, teacher: Teacher, width: int = 64, *, tells_steps: bool = False) -> None:
        super().__init__()
        self.taps = stage_ends(teacher)
        self.has_w = teacher.spec.guidance.mode != "none"
        self.heads = nn.ModuleList(
            Head(value, width, guided=self.has_w, tells_steps=tells_steps) for value in _probed(teacher, self.taps)
        )

    def forward(self, features: Iterable[Tensor], t_B: Tensor, made_at_B: Tensor, conditions: Conditions) -> Tensor:
        """Logits (B, H), float32, of the features of images noised to t, made in the student's step at `made_at_B`."""
        w_B = conditions.w_B if self.has_w else None
        # A slope is a difference of logits over a short way: bfloat16 would round it to steps as large as itself.
        with torch.autocast(t_B.device.type, enabled=False):
            logits = [
                head(value.float(), t_B, made_at_B, w_B) for head, value in zip(self.heads, features, strict=True)
            ]
        return torch.stack(logits, dim=1)


class Head(nn.Module):
    """A perceptron at every position, told noise level, guidance scale and the step that is judged; starts at logit 0.

    Args:
        probe_BCP: features of some images, by which every channel is standardised once and for all. Normalising each image
            would hide how far a point lies from the origin.
        width: E.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(self, probe_BCP: Tensor, width: int, *, guided: bool, tells_steps: bool) -> None:
        super().__init__()
        flat_NC = _positions(probe_BCP).flatten(0, 1)
        self.register_buffer("mean_C", flat_NC.mean(dim=0))
        self.register_buffer("std_C", flat_NC.std(dim=0).clamp(min=1e-6))
        self.first = nn.Linear(flat_NC.shape[1], width)
        self.level = ScalarBranch(width)
        self.made_at = ScalarBranch(width) if tells_steps else None
        self.guidance = ScalarBranch(width) if guided else None
        self.second = nn.Linear(width, width)
        self.out = nn.Linear(width, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor, t_B: Tensor, made_at_B: Tensor, w_B: Tensor | None) -> Tensor:
        """The mean logit of each image, (B,), from features (B, C, ...)."""
        told = self.level(t_B)
        if self.made_at is not None:
            told = told + self.made_at(made_at_B)
        if self.guidance is not None:
            assert w_B is not None
            told = told + self.guidance(w_B)
        hidden = F.silu(self.first((_positions(features) - self.mean_C) / self.std_C) + told[:, None])
        logits: Tensor = self.out(F.silu(self.second(hidden))).mean(dim=(1, 2))
        return logits


def _positions(features: Tensor) -> Tensor:
    """(B, P, C) of (B, C, ...)."""
    return features.flatten(2).movedim(1, 2) if features.ndim > 2 else features[:, None]


@torch.no_grad()
def _probed(teacher: Teacher, taps: Iterable[str], num_images: int = 64) -> list[Tensor]:
    """Features of noise, half way, under labels in turn or the empty prompt."""
    spec, t_B = teacher.spec, torch.full((num_images,), 0.5)
    x = spec.process.init_scale(0.5) * torch.from_numpy(unit_noise(np.arange(num_images), spec.sample_shape))
    labelled = spec.condition.kind == "label"
    label_B = torch.arange(num_images) % spec.condition.num_classes if labelled else None
    null = teacher.null_text_LD
    text_BLD = None if null is None else null.expand(num_images, -1, -1)
    return teacher_features(teacher, taps, x, t_B, Conditions(label_B=label_B, text_BLD=text_BLD))


def teacher_features(
    teacher: Teacher, taps: Iterable[str], x_BCHW: Tensor, t_B: Tensor, conditions: Conditions
) -> list[Tensor]:
    """The teacher's features of a noised image in one evaluation with its label or prompt, differentiable in the image."""
    taps = list(taps)
    with tapped(teacher.network, taps) as outputs:
        teacher.predictor.x0(x_BCHW, t_B, Conditions(label_B=conditions.label_B, text_BLD=conditions.text_BLD))
    return [outputs[name] for name in taps]


def logit_normal_time(mean: float, std: float, draws: Draws, purpose: Purpose) -> Tensor:
    """sigmoid(mean + std n), n unit normal, (B,): Esser et al. 2024 (arXiv 2403.03206), section 3.1."""
    return torch.sigmoid(mean + std * draws.normal((), purpose))
