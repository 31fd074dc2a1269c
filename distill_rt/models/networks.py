"""Network kinds: a JSON configuration to a `torch.nn.Module` with the inputs that the contract names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from distill_rt.core.errors import ArtifactError
from distill_rt.core.spec import NetworkSpec
from distill_rt.models.conditioned import ConditionedNetwork, dit_backbone, unet_backbone
from distill_rt.models.mlp import mlp_backbone

NETWORKS: Mapping[str, Callable[[Mapping[str, Any]], tuple[nn.Module, int]]] = {
    "unet2d": unet_backbone,
    "dit": dit_backbone,
    "mlp": mlp_backbone,
}
"""Kind -> function of the configuration that returns (backbone, width of its conditioning vector)."""

CONDITION_KEYS = ("num_labels", "guidance", "second_time")


def build_network(spec: NetworkSpec) -> ConditionedNetwork:
    """The network of a spec, with fresh weights (torch's global generator).

    `spec.config` holds the arguments of the diffusers class and, beside them, ``num_labels`` (labels including the null
    label, 0 for none), ``guidance`` and ``second_time`` (whether the network takes these inputs).

    Raises:
        ArtifactError: unknown kind, or arguments that the diffusers class refuses.
    """
    if spec.kind not in NETWORKS:
        raise ArtifactError(
            f"network kind {spec.kind!r} is unknown; this version builds {', '.join(NETWORKS)}",
            code="network-unknown",
            hint="upgrade distill-rt, or import the model again",
        )
    config = dict(spec.config)
    extras = {key: config.pop(key) for key in CONDITION_KEYS if key in config}
    try:
        backbone, width = NETWORKS[spec.kind](config)
        return ConditionedNetwork(backbone, width, **extras)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # diffusers checks little of its configuration: what it does not refuse itself, torch trips over.
        raise ArtifactError(
            f"the configuration of network {spec.kind!r} is refused: {' '.join(str(error).split()):.200}",
            code="network-config",
            hint="the student was edited or written by another version",
        ) from error
