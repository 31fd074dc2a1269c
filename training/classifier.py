"""A small convolutional classifier of images: features that end before the last layer, and logits.

Legend: B images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from torch import Tensor, nn

NUM_FEATURES = 64


def classifier_features(sample_shape: tuple[int, int, int]) -> nn.Sequential:
    """Images (B, C, H, W) to features (B, NUM_FEATURES), none of them negative."""
    channels, height, width = sample_shape
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * -(-height // 2) * -(-width // 2), NUM_FEATURES),
        nn.ReLU(),
    )


class ImageClassifier(nn.Module):
    """Features and logits of images."""

    def __init__(self, sample_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.features = classifier_features(sample_shape)
        self.head = nn.Linear(NUM_FEATURES, num_classes)

    def forward(self, images_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        """(B, NUM_FEATURES) and (B, K)."""
        features: Tensor = self.features(images_BCHW)
        return features, self.head(features)
