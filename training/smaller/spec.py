"""The configuration of a smaller network: blocks removed as a whole, widths scaled within the rules of group norms.

Block removal follows BK-SDM (Kim et al. 2023, arXiv 2305.15798, section 3.1): ``base`` has one residual block fewer in every
stage, ``small`` has no middle block either. Transformers and residual MLPs have no stages: their ``base`` is every second
block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import NetworkSpec

Blocks = Literal["all", "no-mid", "base", "small"]
"""What is left: everything; all but the middle block; one residual block fewer a stage; that without the middle block."""

DEPTH_KEY = {"mlp": ("num_blocks", 3), "dit": ("num_layers", 28)}
"""The number of blocks of networks without stages and its default in the network's class."""

UNET_BLOCKS = {"DownBlock2D", "AttnDownBlock2D", "UpBlock2D", "AttnUpBlock2D"}
UNET_DEFAULTS: Mapping[str, Any] = {
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "mid_block_type": "UNetMidBlock2D",
}
"""What diffusers' `UNet2DModel` takes where a configuration says nothing; a test compares them with its signature."""


def unet_setting(spec: NetworkSpec, name: str) -> Any:
    """A value of a UNet's configuration or the class's default."""
    return spec.config.get(name, UNET_DEFAULTS[name])


def smaller_spec(network: NetworkSpec, *, width: float, blocks: Blocks) -> NetworkSpec:
    """The spec of a smaller network.

    Args:
        network: of the big one: ``unet2d`` of plain and attention blocks, ``mlp``, or ``dit`` (whose width stays).
        width: factor in (0, 1] on every width; each is rounded to a multiple of the number of norm groups.
        blocks: what is left of the depth.

    Raises:
        UsageError: a width or a block that this network cannot lose.
    """
    if not 0.0 < width <= 1.0:
        raise UsageError(f"width must be above 0 and at most 1, got {width:g}", code="setting-invalid")
    if network.kind == "unet2d":
        return _smaller_unet(network, width, blocks)
    if network.kind not in DEPTH_KEY:
        raise _cannot(f"a network of kind {network.kind!r} cannot be made smaller", "unet2d, mlp and dit can")
    if blocks in ("no-mid", "small"):
        raise _cannot(f"a network of kind {network.kind!r} has no middle block to remove", "use blocks=base")
    config = dict(network.config)
    if blocks == "base":
        key, default = DEPTH_KEY[network.kind]
        config[key] = -(-config.get(key, default) // 2)
    if network.kind == "dit" and width != 1.0:
        raise _cannot("transformers lose blocks here, not width", "use blocks=base")
    if network.kind == "mlp":
        config["width"] = max(8, round(config.get("width", 128) * width / 8) * 8)
    return NetworkSpec(kind=network.kind, config=config)


def _smaller_unet(network: NetworkSpec, width: float, blocks: Blocks) -> NetworkSpec:
    config = dict(network.config)
    types = {*config.get("down_block_types", ["default"]), *config.get("up_block_types", ["default"])}
    resampling = {config.get(f"{way}sample_type", "conv") for way in ("down", "up")}
    if (
        not types <= UNET_BLOCKS
        or resampling != {"conv"}
        or config.get("time_embedding_type", "positional") != ("positional")
    ):
        raise _cannot(
            "only UNets of named down and up blocks, plain or with attention, convolutional resampling and positional "
            "times can be made smaller",
            f"block types: {', '.join(sorted(UNET_BLOCKS))}",
        )
    channels, groups = list(unet_setting(network, "block_out_channels")), unet_setting(network, "norm_num_groups")
    if blocks in ("no-mid", "small"):
        if unet_setting(network, "mid_block_type") is None:
            raise _cannot("this network has no middle block any more", "use blocks=all or blocks=base")
        config["mid_block_type"] = None
    if blocks in ("base", "small"):
        config["layers_per_block"] = _one_layer_fewer(network, channels)
    narrowed = [max(groups, round(c * width / groups) * groups) for c in channels]
    config["block_out_channels"] = narrowed
    head_dim = unet_setting(network, "attention_head_dim")
    if head_dim is not None and narrowed != channels:
        # Whole heads are dropped; a network that is narrower than one head keeps one that is as wide as it.
        config["attention_head_dim"] = min(head_dim, *narrowed)
    return NetworkSpec(kind=network.kind, config=config)


def _one_layer_fewer(network: NetworkSpec, channels: list[int]) -> int:
    layers = int(unet_setting(network, "layers_per_block"))
    if layers == 0:
        raise _cannot("this network has no residual block to remove any more", "use blocks=all or blocks=no-mid")
    attends = any("Attn" in name for name in network.config["down_block_types"])
    if layers == 1 and (len(set(channels)) > 1 or attends):
        raise _cannot(
            "down stages of one residual block each cannot lose it where it changes the width or attends",
            "use blocks=no-mid or a smaller width",
        )
    return layers - 1


def _cannot(message: str, hint: str) -> UsageError:
    return UsageError(message, code="cannot-be-smaller", hint=hint)
