"""Every network kind takes the inputs of its contract, in that order, and new inputs start without influence."""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny_networks import CONFIGS, make_contract, make_inputs, make_network

from distill_rt.core.errors import ArtifactError
from distill_rt.core.spec import NetworkSpec
from distill_rt.models import NETWORKS, build_network

SWITCHES = list(itertools.product([False, True], repeat=3))


def test_every_kind_is_tested():
    assert set(CONFIGS) == set(NETWORKS)


@pytest.mark.parametrize(("label", "guidance", "second_time"), SWITCHES)
def test_inputs_are_those_of_the_contract_in_its_order(kind, label, guidance, second_time):
    spec = make_contract(kind, label=label, guidance=guidance, second_time=second_time)
    network = make_network(spec)
    assert network.condition_names == tuple(tensor.name for tensor in spec.network_inputs()[2:])
    inputs = make_inputs(spec)
    with torch.no_grad():
        out = network(*inputs)
        assert out.shape == inputs[0].shape
        assert out.dtype == torch.float32
        for i, tensor in enumerate(spec.network_inputs()):
            changed = list(inputs)
            changed[i] = (inputs[i] + 1) % 10 if tensor.name == "label" else inputs[i] + 0.5
            assert not torch.equal(network(*changed), out), f"{tensor.name} has no influence"


@pytest.mark.parametrize(("label", "guidance", "second_time"), SWITCHES)
def test_a_wrong_number_of_inputs_is_refused(kind, label, guidance, second_time):
    """An input that was ignored would give images, just not those that were asked for."""
    spec = make_contract(kind, label=label, guidance=guidance, second_time=second_time)
    network, inputs = make_network(spec), make_inputs(spec)
    with pytest.raises(ValueError, match="this network takes"):
        network(*inputs, torch.ones(3))
    if len(inputs) > 2:
        with pytest.raises(ValueError, match="this network takes"):
            network(*inputs[:-1])


def test_an_image_does_not_depend_on_its_batch(kind):
    spec = make_contract(kind, guidance=True, second_time=True)
    network, inputs = make_network(spec), make_inputs(spec, 4)
    with torch.no_grad():
        whole = network(*inputs)
        alone = torch.cat([network(*[value[i : i + 1] for value in inputs]) for i in range(4)])
    torch.testing.assert_close(alone, whole, rtol=1e-4, atol=1e-5)


def test_new_inputs_start_without_influence(kind):
    """The student of a teacher without them is exactly that teacher, whatever their values; and they can learn."""
    plain = make_contract(kind)
    teacher = make_network(plain)
    spec = make_contract(kind, guidance=True, second_time=True)
    student = build_network(spec.networks[0])
    missing, unexpected = student.load_state_dict(teacher.state_dict(), strict=False)
    assert unexpected == []
    assert {key.partition(".")[0] for key in missing} == {"guidance", "second_time"}
    sample, time, second_time, label, guidance = make_inputs(spec)
    expected = teacher(sample, time, label)
    for scale in (0.0, 1.0, 100.0):
        assert torch.equal(student.eval()(sample, time, scale * second_time, label, scale * guidance), expected)
    student(sample, time, second_time, label, guidance).square().sum().backward()
    for branch in (student.guidance, student.second_time):
        assert branch.out.weight.grad.abs().sum() > 0


def test_equal_seeds_build_equal_networks(kind):
    spec = make_contract(kind, guidance=True, second_time=True).networks[0]
    states = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        states.append(build_network(spec).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(states[0].values(), states[2].values(), strict=True))


@pytest.mark.parametrize("kind_name", ["sdxl", "", "UNet2D"])
def test_unknown_kinds(kind_name):
    with pytest.raises(ArtifactError, match="this version builds unet2d, dit, mlp") as caught:
        build_network(NetworkSpec(kind=kind_name))
    assert caught.value.code == "network-unknown"
    assert caught.value.hint


BAD = {
    "unet2d": [
        {"block_out_channels": []},
        {"block_out_channels": "wide"},
        {"block_out_channels": [7, 7]},
        {"down_block_types": ["DownBlock2D"]},
        {"down_block_types": ["NoSuchBlock", "DownBlock2D"]},
        {"norm_num_groups": 0},
        {"in_channels": -1},
        {"in_channels": None},
        {"layers_per_block": "two"},
        {"class_embed_type": "timestep"},
    ],
    "dit": [
        {"num_layers": None},
        {"patch_size": 0},
        {"attention_head_dim": -32},
        {"norm_type": "layer"},
        {"num_attention_heads": "x"},
    ],
    "mlp": [{"width": -1}, {"width": None}, {"num_blocks": "x"}, {"in_channels": []}],
}

BAD_EVERYWHERE = [{"num_labels": -5}, {"num_labels": "x"}, {"unknown_argument": 1}]


@pytest.mark.parametrize(
    ("kind_name", "change"),
    [(kind, change) for kind in NETWORKS for change in [*BAD[kind], *BAD_EVERYWHERE]],
)
def test_configurations_that_the_network_refuses(kind_name, change):
    config = {**CONFIGS[kind_name], **change}
    with pytest.raises(ArtifactError) as caught:
        build_network(NetworkSpec(kind=kind_name, config=config))
    assert caught.value.code == "network-config"
    assert caught.value.hint
    assert "\n" not in str(caught.value)
