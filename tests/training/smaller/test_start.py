"""Where a smaller network starts: the same function where nothing that matters was removed."""

import copy

import pytest
import torch
from torch import nn

from distill_rt.core.spec import NetworkSpec
from distill_rt.models import build_network
from distill_rt.training.smaller import smaller_network, smaller_spec
from distill_rt.training.smaller.layout import TIME_FEATURES, layout_of

CONDITIONS = {"num_labels": 6, "guidance": True}
UNET = NetworkSpec(
    kind="unet2d",
    config={
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "block_out_channels": [32, 64],
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
        "attention_head_dim": 16,
        "norm_num_groups": 4,
        **CONDITIONS,
    },
)
SCALE_SHIFT = NetworkSpec(kind="unet2d", config={**UNET.config, "resnet_time_scale_shift": "scale_shift"})
MLP = NetworkSpec(kind="mlp", config={"in_channels": 2, "width": 32, "num_blocks": 4, **CONDITIONS})
DIT = NetworkSpec(
    kind="dit",
    config={
        "sample_size": 8,
        "in_channels": 1,
        "out_channels": 1,
        "patch_size": 2,
        "num_layers": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "norm_num_groups": 1,
        **CONDITIONS,
    },
)
ALL = pytest.mark.parametrize("spec", [UNET, SCALE_SHIFT, MLP, DIT], ids=["unet", "scale-shift", "mlp", "dit"])


def random_network(spec):
    torch.manual_seed(0)
    network = build_network(spec).eval().requires_grad_(False)
    for parameter in network.parameters():  # zero-initialised layers would hide what is wrong behind them
        nn.init.normal_(parameter, std=0.1)
    return network


def inputs_of(spec, time=0.0):
    generator = torch.Generator().manual_seed(1)
    shape = (3, 2, 1, 1) if spec.kind == "mlp" else (3, 1, 8, 8)
    return (
        torch.randn(shape, generator=generator),
        torch.full((3,), time),
        torch.tensor([0, 2, 5]),
        torch.tensor([1.0, 2, 3]),
    )


@ALL
def test_the_same_spec_gives_the_same_network(spec):
    big = random_network(spec)
    smaller = smaller_network(big, spec, smaller_spec(spec, width=1.0, blocks="all"))
    state = smaller.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in big.state_dict().items())
    inputs = inputs_of(spec, time=300.0)
    assert torch.equal(smaller.network(*inputs), big(*inputs))
    assert all(kept is None for kept in smaller.kept.values())
    assert all(tap == of for tap, of in smaller.taps.items())


class _ScaleAndShift(nn.Module):
    """A group norm that leaves the statistics alone, so that a channel that is zero is as good as none."""

    def __init__(self, norm):
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x):
        trailing = [1] * (x.ndim - 2)
        return x * self.weight.view(1, -1, *trailing) + self.bias.view(1, -1, *trailing)


def without_statistics(network):
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm):
                setattr(parent, name, _ScaleAndShift(child))
    return network


@pytest.mark.parametrize("spec", [UNET, SCALE_SHIFT, MLP], ids=["unet", "scale-shift", "mlp"])
def test_removing_channels_that_do_nothing_changes_nothing(spec):
    """Half of every group's channels (whole heads of attentions) are zero in all that reads and writes them. At time 0 all
    cosines are 1 and all sines 0, where fewer frequencies say the same."""
    big = random_network(spec)
    layout, state = layout_of(spec, big), big.state_dict()
    sizes = {}
    for name, axes in layout.axes.items():
        for dim, axis in enumerate(axes):
            if len(axis) == 1 and name in state:
                sizes[axis[0]] = state[name].shape[dim]
    generator = torch.Generator().manual_seed(2)
    live = {}
    for group, size in sizes.items():
        blocks = layout.blocks.get(group, 1)
        if "attentions" in group:
            live[group] = (torch.arange(blocks) % 2 == 1).repeat_interleave(size // blocks)
        else:
            order = torch.rand(blocks, size // blocks, generator=generator).argsort(dim=1)
            live[group] = (order < size // blocks // 2).flatten()
    live[TIME_FEATURES] = torch.ones(sizes.get(TIME_FEATURES, 0), dtype=torch.bool)
    for name, axes in layout.axes.items():
        for dim, axis in enumerate(axes):
            if axis and name in state:
                mask = torch.cat([live[group] for group in axis])
                state[name].movedim(dim, 0)[~mask] = 0.0
    small_spec = smaller_spec(spec, width=0.5, blocks="all")
    smaller = smaller_network(big, spec, small_spec)
    assert sum(p.numel() for p in smaller.network.parameters()) < 0.3 * sum(p.numel() for p in big.parameters())
    inputs = inputs_of(spec)
    expected = without_statistics(copy.deepcopy(big))(*inputs)
    torch.testing.assert_close(without_statistics(smaller.network)(*inputs), expected, rtol=1e-4, atol=1e-5)
    assert expected.std() > 1e-3


def test_every_norm_group_keeps_equally_many_of_its_strongest_channels():
    big = random_network(UNET)
    smaller = smaller_network(big, UNET, smaller_spec(UNET, width=0.5, blocks="all"))
    for tap, kept in smaller.kept.items():
        width = big.get_submodule(tap).resnets[0].conv2.out_channels
        assert kept.shape == (width // 2, width)
        assert torch.equal(kept.sum(1), torch.ones(width // 2))
        assert torch.equal(kept.reshape(width // 2, 4, -1).sum((0, 2)), torch.full((4,), width / 8))
        assert kept.argmax(1).tolist() == sorted(kept.argmax(1).tolist())
    # A channel that everything reads ten times as strongly stays.
    state = big.state_dict()
    state["backbone.conv_in.weight"][7] *= 100.0
    kept = smaller_network(big, UNET, smaller_spec(UNET, width=0.25, blocks="all")).kept["backbone.down_blocks.0"]
    assert kept[:, 7].sum() == 1.0


def test_kept_blocks_are_the_first_and_in_up_stages_also_the_last():
    big = random_network(UNET)
    smaller = smaller_network(big, UNET, smaller_spec(UNET, width=1.0, blocks="small"))
    small, old = smaller.network.backbone, big.backbone
    assert small.mid_block is None
    for stage in (0, 1):
        pairs = [
            (small.down_blocks[stage].resnets, [old.down_blocks[stage].resnets[0]]),
            (small.up_blocks[stage].resnets, [old.up_blocks[stage].resnets[j] for j in (0, 2)]),
        ]
        for have, want in pairs:
            assert len(have) == len(want)
            for a, b in zip(have, want, strict=True):
                assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert set(smaller.taps) == {f"backbone.{way}_blocks.{i}" for way in ("up", "down") for i in (0, 1)}
    assert smaller.network(*inputs_of(UNET)).shape == (3, 1, 8, 8)


@pytest.mark.parametrize(("spec", "stem"), [(MLP, "backbone.blocks"), (DIT, "backbone.net.transformer_blocks")])
def test_pairs_of_blocks_become_their_first_and_answer_for_their_second(spec, stem):
    big = random_network(spec)
    smaller = smaller_network(big, spec, smaller_spec(spec, width=1.0, blocks="base"))
    for small, old in ((0, 0), (1, 2)):
        have, want = smaller.network.get_submodule(f"{stem}.{small}"), big.get_submodule(f"{stem}.{old}")
        assert all(torch.equal(p, q) for p, q in zip(have.parameters(), want.parameters(), strict=True))
    assert smaller.taps == {f"{stem}.0": f"{stem}.1", f"{stem}.1": f"{stem}.3"}
    assert torch.isfinite(smaller.network(*inputs_of(spec))).all()


def test_stages_of_one_residual_block_can_lose_it():
    spec = NetworkSpec(
        kind="unet2d",
        config={
            **UNET.config,
            "layers_per_block": 1,
            "block_out_channels": [32, 32],
            "down_block_types": ["DownBlock2D"] * 2,
            "up_block_types": ["UpBlock2D"] * 2,
        },
    )
    big = random_network(spec)
    smaller = smaller_network(big, spec, smaller_spec(spec, width=0.5, blocks="base"))
    assert len(smaller.network.backbone.down_blocks[0].resnets) == 0
    assert smaller.network(*inputs_of(spec)).shape == (3, 1, 8, 8)
