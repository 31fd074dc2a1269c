"""What the distribution matching methods share: a generator, a network that learns its scores, and the gradient between them.

A generator's images are noised; the teacher denoises them as images of the data, a second network, trained on the generator's
own images, as what they are. The difference of the two answers moves the generator (Wang et al. 2023, VSD, arXiv 2305.16213;
Luo et al. 2023, Diff-Instruct, arXiv 2305.18455; Yin et al. 2024, DMD, arXiv 2311.18828).

Both networks train in one optimiser step: their losses touch disjoint weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from distill_rt.core.spec import StudentSpec
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.losses import denoising_error
from distill_rt.training.predictor import Conditions, Predictor

MIN_TIME, MAX_TIME = 0.02, 0.98
"""Range of the time at which the two scores are compared (DMD, section 3.2)."""


class GeneratorAndScore(nn.Module):
    """What trains together: the student, and the denoiser of its images, which is not exported."""

    def __init__(self, student: nn.Module, score: nn.Module) -> None:
        super().__init__()
        self.student = student
        self.score = score


class Told(nn.Module):
    """A score network that is told one more time, (B,), with every call: which step made each image."""

    def __init__(self, score: nn.Module, second_time_B: Tensor) -> None:
        super().__init__()
        self.score = score
        self.second_time_B = second_time_B

    def forward(self, x_BCHW: Tensor, time_B: Tensor, *conditions: Tensor) -> Tensor:
        out: Tensor = self.score(x_BCHW, time_B, self.second_time_B, *conditions)
        return out


@contextlib.contextmanager
def frozen(network: nn.Module) -> Iterator[None]:
    """Calls inside take no gradient in the network's weights, but do in its inputs."""
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def matching_time(draws: Draws, power: float = 1.0) -> Tensor:
    """Between MIN_TIME and MAX_TIME, (B,): uniform, or with `power` above 1 more often near MIN_TIME, where the scores know the
    fine structure of the images."""
    return MIN_TIME + (MAX_TIME - MIN_TIME) * draws.uniform(Purpose.TIME) ** power


def fake_x0(spec: StudentSpec, score: nn.Module, x_BCHW: Tensor, t_B: Tensor, conditions: Conditions) -> Tensor:
    """x0 of the network that knows the generator's images; `spec` is the teacher's contract."""
    return Predictor.of(spec, score).x0(x_BCHW, t_B, conditions)


def score_loss(spec: StudentSpec, score: nn.Module, images: Tensor, conditions: Conditions, draws: Draws) -> Tensor:
    """Denoising of the generator's images, t uniform."""
    eps = draws.normal(spec.sample_shape, Purpose.SCORE_NOISE)
    t_B = draws.uniform(Purpose.SCORE_TIME)
    return denoising_error(spec, score, images.detach(), t_B, eps, conditions).mean()


def follow(images: Tensor, gradient: Tensor) -> Tensor:
    """A loss whose gradient in every image is `gradient` over the number of all elements."""
    return 0.5 * (images - (images - gradient).detach()).square().mean()


def mean_distance(a_BCHW: Tensor, b_BCHW: Tensor) -> Tensor:
    """Mean absolute difference of each image, (B, 1, 1, 1), at least 1e-5."""
    return (a_BCHW - b_BCHW).abs().flatten(1).mean(dim=1).clamp(min=1e-5).detach()[:, None, None, None]


def generate(
    spec: StudentSpec, student: nn.Module, z_BCHW: Tensor, conditions: Conditions, start: float = 1.0
) -> Tensor:
    """The one-step generator's images: x0 of noise at the time `start`."""
    x = spec.process.init_scale(start) * z_BCHW
    return Predictor.of(spec, student).x0(x, x.new_full((len(x),), start), conditions)
