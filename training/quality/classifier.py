"""An independent classifier of the real data: whether samples carry their label, and features to compare them in."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill_rt.training.classifier import NUM_FEATURES, classifier_features
from distill_rt.training.data import TensorDataset


@dataclass(frozen=True, kw_only=True)
class Classifier:
    """`features` ends before the last layer; `head` gives logits. `held_out_accuracy` on real data it never saw."""

    features: nn.Module
    head: nn.Module
    held_out_accuracy: float

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        embedded: Tensor = self.features(images)
        return embedded

    @torch.no_grad()
    def classify(self, images: Tensor) -> Tensor:
        """The most likely class of each image, (N,)."""
        found: Tensor = self.head(self.features(images)).argmax(dim=1)
        return found

    def accuracy(self, images: Tensor, asked: Tensor) -> float:
        """Share of the images that show the asked class, (N,)."""
        return float((self.classify(images) == asked).float().mean())


def train_classifier(data: TensorDataset, *, seed: int = 12345, iterations: int = 800) -> Classifier:
    """A small convolutional network on four fifths of the real images; it shares nothing with any generator."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        order = torch.randperm(len(data.x0_NCHW))
        train, held_out = order[: len(order) * 4 // 5], order[len(order) * 4 // 5 :]
        assert data.label_N is not None
        features = classifier_features(data.sample_shape)
        head = nn.Sequential(nn.Dropout(0.3), nn.Linear(NUM_FEATURES, data.num_classes))
        model = nn.Sequential(features, head)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-2)
        for _ in range(iterations):
            index = train[torch.randint(len(train), (128,))]
            images = data.x0_NCHW[index]
            logits = model(images + 0.15 * torch.randn_like(images))
            loss = F.cross_entropy(logits, data.label_N[index])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.eval().requires_grad_(False)
    accuracy = float((model(data.x0_NCHW[held_out]).argmax(1) == data.label_N[held_out]).float().mean())
    return Classifier(features=features, head=head, held_out_accuracy=accuracy)
