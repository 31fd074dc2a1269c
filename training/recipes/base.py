"""What a recipe returns."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import Decoder, StudentSpec
from distill_rt.models.autoencoder import Autoencoder
from distill_rt.training.methods.base import Method


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """What students of this recipe's teacher measured; `benchmarks/results/quality.json` has the rows, a test compares.

    Args:
        method: as `make quality` calls it.
        nfe: evaluations of the network for one image.
        c2st: how often a classifier tells the student's images from the teacher's, mean of the seeds; 0.5 is never.
        passed: clears the bar of docs/methods.md with every seed.
    """

    method: str
    nfe: int
    c2st: float
    passed: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Everything that a teacher's training needs.

    Args:
        spec: contract of the teacher.
        dataset: name for `open_source`.
        method: how it is trained.
        minutes: of training on two shared cores of an AMD EPYC; None if nobody has measured it.
        words: of the tokenizer, for a contract with prompts.
        figures: of students of this teacher; empty if nobody has measured one.
    """

    spec: StudentSpec
    dataset: str
    method: Method
    minutes: float | None = None
    words: tuple[str, ...] = ()
    figures: tuple[Figure, ...] = ()

    def for_classes(self, num_classes: int) -> Recipe:
        """The recipe for data with another number of classes; the label after the last one means none."""
        condition = self.spec.condition
        if condition.kind != "label" or condition.num_classes == num_classes:
            return self
        networks = tuple(
            dataclasses.replace(network, config={**network.config, "num_labels": num_classes + 1})
            for network in self.spec.networks
        )
        condition = dataclasses.replace(condition, num_classes=num_classes, null_label=num_classes)
        return dataclasses.replace(self, spec=dataclasses.replace(self.spec, condition=condition, networks=networks))

    def for_latents(self, autoencoder: Autoencoder) -> Recipe:
        """The recipe on latents: its network stays as it is but for the channels, images become larger by the autoencoder's
        factor.

        Raises:
            UsageError: a network of something else than images.
        """
        _, height, width = self.spec.sample_shape
        latent_shape = autoencoder.latent_channels, height, width
        channels = {"in_channels": latent_shape[0], "out_channels": latent_shape[0]}
        if not all(channels.keys() <= network.config.keys() for network in self.spec.networks):
            raise UsageError(
                f"the network of {self.spec.name} does not take images, so it takes no latents either",
                code="recipe-without-images",
                hint="leave --autoencoder out, or choose a recipe of images (distill-rt recipes)",
            )
        networks = tuple(
            dataclasses.replace(network, config={**network.config, **channels}) for network in self.spec.networks
        )
        decoder = Decoder(network=autoencoder.network, image_shape=autoencoder.image_shape(latent_shape))
        spec = dataclasses.replace(self.spec, sample_shape=latent_shape, networks=networks, decoder=decoder)
        return dataclasses.replace(self, spec=spec, minutes=None, figures=())
