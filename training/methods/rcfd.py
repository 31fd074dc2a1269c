"""Progressive distillation compared by a classifier: the last halvings follow the features of the target, not its pixels.

Sun et al. 2022 (RCFD, arXiv 2211.12039): ``KL(softmax(f(target) / temperature) || softmax(f(x0)))`` of a classifier's features
f, and beside it ``alpha (beta H + (1 - beta) D)``: the entropy of what the classifier says of an image, and the negative
entropy of what it says of all of them. The classifier is trained on the data in the run's own first phase: quality is never
measured by the network that gave the loss.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.training.classifier import ImageClassifier
from distill_rt.training.data import Batch
from distill_rt.training.distribution import frozen
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.losses import squared_error
from distill_rt.training.methods.base import Networks, Phase, check_setting
from distill_rt.training.methods.progressive import Progressive, halving_pair
from distill_rt.training.predictor import Teacher
from distill_rt.training.student import embed_guidance

AUGMENTATION = 0.15
"""Standard deviation of the noise on the classifier's images: it sees unfinished ones later."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassifierFeatures(Progressive):
    """Settings as in `Progressive`, and:

    Args:
        classifier_iterations: training steps of the classifier.
        compared_steps: stages of at most so many steps compare features; those before are progressive distillation.
        temperature: of the target's features; below 1 (0.9 in the paper) sharpens them.
        feature_weight, pixel_weight: of the divergence of features, and of progressive distillation's own loss beside it.
        regularization, confidence: alpha and beta.
    """

    name: ClassVar[str] = "rcfd"

    classifier_iterations: int = 400
    compared_steps: int = 4
    temperature: float = 1.0
    feature_weight: float = 0.1
    pixel_weight: float = 1.0
    regularization: float = 0.003
    confidence: float = 0.75

    def __post_init__(self) -> None:
        Progressive.__post_init__(self)
        check_setting(
            self.classifier_iterations >= 1, f"classifier_iterations must be >= 1, got {self.classifier_iterations}"
        )
        check_setting(self.temperature > 0.0, f"temperature must be positive, got {self.temperature:g}")
        weights = (self.feature_weight, self.pixel_weight, self.regularization)
        check_setting(
            min(weights) >= 0.0 and self.feature_weight + self.pixel_weight > 0.0,
            f"weights must not be negative, and one of features and pixels not 0, got {', '.join(f'{w:g}' for w in weights)}",
        )
        check_setting(0.0 <= self.confidence <= 1.0, f"confidence must be in [0, 1], got {self.confidence:g}")

    def phases(self, teacher: StudentSpec) -> tuple[Phase, ...]:
        if teacher.condition.kind != "label":
            raise UsageError(
                f"rcfd compares images by a classifier, and the data of {teacher.name!r} have no labels to train one on",
                code="no-classifier",
                hint="use progressive, or a teacher with labels",
            )
        first = Phase(name="classifier", network="classifier", start=0, iterations=self.classifier_iterations)
        later = [
            dataclasses.replace(phase, start=phase.start + first.iterations)
            for phase in Progressive.phases(self, teacher)
        ]
        return (first, *later)

    def networks(self, teacher: Teacher) -> dict[str, nn.Module]:
        spec = teacher.spec
        classifier = ImageClassifier(spec.sample_shape, spec.condition.num_classes)
        return {**Progressive.networks(self, teacher), "classifier": classifier}

    def losses(
        self, phase: Phase, step: int, networks: Networks, teacher: Teacher, batch: Batch, draws: Draws
    ) -> dict[str, Tensor]:
        classifier = networks["classifier"]
        if phase.network == "classifier":
            assert batch.label_B is not None
            noised = batch.x0_BCHW + AUGMENTATION * draws.normal(teacher.spec.sample_shape, Purpose.NOISE)
            return {"classifier": F.cross_entropy(classifier(noised)[1], batch.label_B)}
        if not 0 < phase.target <= max(self.compared_steps, self.steps):
            return Progressive.losses(self, phase, step, networks, teacher, batch, draws)
        stage_teacher = Teacher(embed_guidance(teacher.spec), networks["stage_teacher"])
        x0, target, weight_B = halving_pair(networks["student"], stage_teacher, phase.target, batch, draws)
        with frozen(classifier):
            (features, logits), (wanted, _) = classifier(x0), classifier(target)
        losses = {
            "features": self.feature_weight * feature_divergence(features.float(), wanted.float(), self.temperature),
            "regular": self.regularization * doubt(logits.float(), self.confidence),
        }
        if self.pixel_weight:
            losses["halving"] = self.pixel_weight * (weight_B * squared_error(x0, target)).mean()
        return losses


def feature_divergence(features: Tensor, target: Tensor, temperature: float) -> Tensor:
    """``KL(softmax(target / temperature) || softmax(features))``, mean over images; zero only where the two are equal."""
    wanted = F.log_softmax(target.detach() / temperature, dim=1)
    return F.kl_div(F.log_softmax(features, dim=1), wanted, reduction="batchmean", log_target=True)


def doubt(logits: Tensor, confidence: float) -> Tensor:
    """``beta H + (1 - beta) D``: H the mean entropy of an image's classes, D minus the entropy of the mean over images."""
    log_p = F.log_softmax(logits, dim=1)
    mean = log_p.exp().mean(dim=0)
    entropy = -(log_p.exp() * log_p).sum(dim=1).mean()
    negative_diversity: Tensor = (mean * mean.clamp(min=1e-12).log()).sum()
    return confidence * entropy + (1.0 - confidence) * negative_diversity
