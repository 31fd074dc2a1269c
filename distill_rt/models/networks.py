"""Network kinds: a JSON configuration to a `torch.nn.Module` with the inputs that the contract names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from torch import nn

from distill_rt.core.errors import ArtifactError
from distill_rt.core.spec import NetworkSpec
from distill_rt.models.conditioned import ConditionedNetwork, dit_backbone, unet_backbone
from distill_rt.models.decoder import DECODERS, LatentDecoder
from distill_rt.models.mlp import mlp_backbone
from distill_rt.models.text_conditioned import TEXT_NETWORKS, TextConditionedUNet
from distill_rt.models.text_encoder import TEXT_ENCODERS, ClipTextEncoder

T = TypeVar("T")

NETWORKS: Mapping[str, Callable[[Mapping[str, Any]], tuple[nn.Module, int]]] = {
    "unet2d": unet_backbone,
    "dit": dit_backbone,
    "mlp": mlp_backbone,
}
"""Kind -> function of the configuration that returns (backbone, width of its conditioning vector); `TEXT_NETWORKS` has
those that read text."""

CONDITION_KEYS = ("num_labels", "guidance", "second_time")
"""What stands in a configuration beside the arguments of the diffusers class, and decides the inputs."""


def build_network(spec: NetworkSpec) -> ConditionedNetwork | TextConditionedUNet:
    """The network of a spec, with fresh weights (torch's global generator).

    `spec.config` holds the arguments of the diffusers class and, beside them, ``num_labels`` (labels including the null
    label, 0 for none), ``guidance`` and ``second_time`` (whether the network takes these inputs; the latter as the number of
    network time units in one unit of process time); kinds that read text know
    ``guidance`` only.

    Raises:
        ArtifactError: unknown kind, or arguments that the diffusers class refuses.
    """
    config = dict(spec.config)
    extras = {key: config.pop(key) for key in CONDITION_KEYS if key in config}

    def labelled(config: Mapping[str, Any]) -> ConditionedNetwork:
        backbone, width = NETWORKS[spec.kind](config)
        return ConditionedNetwork(backbone, width, **extras)

    def texted(config: Mapping[str, Any]) -> TextConditionedUNet:
        return TEXT_NETWORKS[spec.kind](config, **extras)

    kinds: dict[str, Callable[[Mapping[str, Any]], ConditionedNetwork | TextConditionedUNet]] = {
        **dict.fromkeys(NETWORKS, labelled),
        **dict.fromkeys(TEXT_NETWORKS, texted),
    }
    return _build("network", kinds, spec.kind, config)


def build_text_encoder(spec: NetworkSpec) -> ClipTextEncoder:
    """The text encoder of a spec, with fresh weights; raises as `build_network`."""
    return _build("text encoder", TEXT_ENCODERS, spec.kind, spec.config)


def build_decoder(spec: NetworkSpec) -> LatentDecoder:
    """The decoder of a spec, with fresh weights; raises as `build_network`."""
    return _build("decoder", DECODERS, spec.kind, spec.config)


def _build(what: str, kinds: Mapping[str, Callable[[Mapping[str, Any]], T]], kind: str, config: Mapping[str, Any]) -> T:
    if kind not in kinds:
        raise ArtifactError(
            f"{what} kind {kind!r} is unknown; this version builds {', '.join(kinds)}",
            code="network-unknown",
            hint="upgrade distill-rt, or import the model again",
        )
    try:
        return kinds[kind](dict(config))
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # The libraries check little of their configurations: what they do not refuse themselves, torch trips over.
        raise ArtifactError(
            f"the configuration of {what} {kind!r} is refused: {' '.join(str(error).split()):.200}",
            code="network-config",
            hint="the student was edited or written by another version",
        ) from error
