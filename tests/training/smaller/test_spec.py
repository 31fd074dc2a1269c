"""Configurations of smaller networks: what is removed, how widths are rounded, and what is refused."""

import inspect

import pytest

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import NetworkSpec
from distill_rt.training.recipes import RECIPES
from distill_rt.training.smaller import smaller_spec
from distill_rt.training.smaller.spec import DEPTH_KEY, UNET_DEFAULTS

DIGITS = RECIPES["digits-teacher"]().spec.networks[0]
GRID = RECIPES["grid25-teacher"]().spec.networks[0]
STAGES = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}


def unet(**config):
    return NetworkSpec(kind="unet2d", config={**STAGES, "block_out_channels": [64, 128], **config})


def test_defaults_are_those_of_the_classes():
    from diffusers import DiTTransformer2DModel, UNet2DModel

    from distill_rt.models.mlp import ResidualMLP

    signature = inspect.signature(UNet2DModel.__init__).parameters
    assert {name: signature[name].default for name in UNET_DEFAULTS} == UNET_DEFAULTS
    for kind, cls in (("mlp", ResidualMLP), ("dit", DiTTransformer2DModel)):
        key, default = DEPTH_KEY[kind]
        assert inspect.signature(cls.__init__).parameters[key].default == default
    assert inspect.signature(ResidualMLP.__init__).parameters["width"].default == 128


@pytest.mark.parametrize("network", [DIGITS, GRID], ids=["digits", "grid25"])
def test_all_of_it_at_full_width_is_the_same_network(network):
    assert smaller_spec(network, width=1.0, blocks="all") == network


@pytest.mark.parametrize(
    ("width", "channels", "head_dim"),
    [(0.75, [48, 48], 32), (0.5, [32, 32], 32), (0.35, [24, 24], 24), (0.01, [8, 8], 8), (0.999, [64, 64], 32)],
)
def test_widths_are_multiples_of_the_norm_groups_and_heads_fit(width, channels, head_dim):
    config = smaller_spec(DIGITS, width=width, blocks="all").config
    assert (config["block_out_channels"], config["attention_head_dim"]) == (channels, head_dim)
    assert {**config, "block_out_channels": None, "attention_head_dim": None} == {
        **DIGITS.config,
        "block_out_channels": None,
        "attention_head_dim": None,
    }


def test_blocks_of_a_unet():
    big = unet(layers_per_block=2)
    left = {blocks: smaller_spec(big, width=1.0, blocks=blocks).config for blocks in ("no-mid", "base", "small")}
    assert left["no-mid"] == {**big.config, "mid_block_type": None}
    assert left["base"] == {**big.config, "layers_per_block": 1}
    assert left["small"] == {**big.config, "layers_per_block": 1, "mid_block_type": None}
    assert smaller_spec(DIGITS, width=1.0, blocks="base").config["layers_per_block"] == 0


def test_every_second_block_of_networks_without_stages():
    assert smaller_spec(GRID, width=0.5, blocks="base").config == {**GRID.config, "num_blocks": 2, "width": 64}
    three = NetworkSpec(kind="mlp", config={"in_channels": 2})
    assert smaller_spec(three, width=1.0, blocks="base").config["num_blocks"] == 2
    assert smaller_spec(NetworkSpec(kind="dit"), width=1.0, blocks="base").config == {"num_layers": 14}


@pytest.mark.parametrize(
    ("network", "width", "blocks", "said"),
    [
        (DIGITS, 0.0, "all", "width must be above 0 and at most 1"),
        (DIGITS, 1.5, "all", "width must be above 0 and at most 1"),
        (DIGITS, float("nan"), "all", "width must be above 0 and at most 1"),
        (NetworkSpec(kind="other"), 1.0, "all", "'other' cannot be made smaller"),
        (NetworkSpec(kind="dit"), 0.5, "all", "not width"),
        (GRID, 1.0, "no-mid", "no middle block to remove"),
        (GRID, 1.0, "small", "no middle block to remove"),
        (unet(mid_block_type=None), 1.0, "small", "no middle block any more"),
        (unet(layers_per_block=0), 1.0, "base", "no residual block to remove"),
        (unet(layers_per_block=1), 1.0, "base", "changes the width or attends"),
        (unet(down_block_types=["SkipDownBlock2D", "DownBlock2D"]), 0.5, "all", "only UNets of"),
        (unet(downsample_type="resnet"), 0.5, "all", "only UNets of"),
        (unet(time_embedding_type="fourier"), 0.5, "all", "only UNets of"),
        (NetworkSpec(kind="unet2d"), 0.5, "all", "only UNets of"),
    ],
)
def test_what_a_network_cannot_lose_is_said(network, width, blocks, said):
    with pytest.raises(UsageError, match=said) as caught:
        smaller_spec(network, width=width, blocks=blocks)
    assert "\n" not in str(caught.value)
