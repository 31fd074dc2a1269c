"""Options of the loop that must not change what it makes: activations computed again, compiled networks; and the averages."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from several_processes import assert_same
from short_runs import BRIEF, SETTINGS, STEPS
from tiny_networks import CONFIGS, make_contract, make_inputs, make_network
from torch import nn

from distill_rt.core.errors import UsageError
from distill_rt.models import load_student
from distill_rt.training.blocks import blocks_of, recompute_in_backward
from distill_rt.training.compiled import compile_networks, is_compiled
from distill_rt.training.copies import average_into, frozen_copy, power_decay
from distill_rt.training.methods import METHODS
from distill_rt.training.run import distill, train

TEACHER = {"steps": "6", "batch_size": "16", "warmup": "2"}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("options") / "teacher"
    train("grid25-labelled-teacher", out, settings=TEACHER)
    return out


def backward(network: nn.Module, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    network.zero_grad()
    network(*inputs).square().mean().backward()
    return [weight.grad.clone() for weight in network.parameters() if weight.grad is not None]


@pytest.mark.parametrize("kind", CONFIGS)
def test_blocks_run_twice_and_give_the_same_gradients(kind):
    spec = make_contract(kind, guidance=True)
    network, inputs = make_network(spec).train(), make_inputs(spec)
    blocks = blocks_of(network)
    assert len(blocks) == {"unet2d": 5, "dit": 1, "mlp": 1}[kind]
    calls: list[nn.Module] = []
    for block in blocks:
        for part in block.modules():
            if part is not block and not list(part.children()):
                part.register_forward_hook(lambda module, given, made: calls.append(module))
    kept = backward(network, inputs)
    once = len(calls)
    calls.clear()
    recompute_in_backward(network)
    again = backward(network, inputs)
    assert once < len(calls) <= 2 * once, "a second time, as far as the gradients need it"
    assert len(kept) == len(again)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))
    copied = frozen_copy(network)
    assert not any(weight.requires_grad for weight in copied.parameters())
    with torch.no_grad():
        theirs, ours = copied(*inputs), network(*inputs)
        for weight in blocks_of(network)[0].parameters():
            weight.mul_(2.0)
        assert torch.equal(copied(*inputs), theirs), "a copy runs its own blocks"
        assert not torch.equal(network(*inputs), ours)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"bespoke", "gits"}))
def test_activations_computed_again_change_no_bit(teacher, tmp_path, method):
    settings = {**SETTINGS.get(method, BRIEF), "batch_size": "8"}
    if method == "ladd":
        settings |= {"num_pairs": "16", "teacher_steps": "2", "judge_warmup": "1"}
    for name, options in (("kept", {}), ("again", {"checkpoint_activations": True, "precision": "fp32"})):
        distill(method, teacher, tmp_path / name, steps=STEPS.get(method, 2), settings=settings, **options)
    assert load_student(tmp_path / "again").digest == load_student(tmp_path / "kept").digest


def test_compiled_networks_train_the_same_weights(teacher, tmp_path):
    train("grid25-labelled-teacher", tmp_path / "compiled", settings=TEACHER, compile=True)
    assert_same(tmp_path / "compiled", teacher)
    assert load_student(tmp_path / "compiled").spec.provenance["loop"] == {"compile": True}


def test_what_is_compiled(teacher, tmp_path):
    network = make_network(make_contract("mlp"))
    compile_networks([nn.ModuleDict({"student": network}), nn.Linear(2, 2)])
    assert is_compiled(network)
    assert not is_compiled(frozen_copy(network))
    with pytest.raises(UsageError, match="a compiled one does not show"):
        distill("feature_kd", teacher, tmp_path / "s", steps=4, compile=True, settings={"batch_size": "8"})
    with pytest.raises(UsageError, match="not compiled here"):
        train("grid25-labelled-teacher", tmp_path / "t", settings=TEACHER, compile=True, parallel="fsdp")


@pytest.mark.parametrize("gamma", [0.0, 2.5, 6.94])
def test_a_power_function_average_weighs_by_a_power_of_time(gamma):
    """After T updates, weights tau have ``(tau^(gamma+1) - (tau-1)^(gamma+1)) / T^(gamma+1)``; the start has none."""
    values = torch.randn(50, generator=torch.Generator().manual_seed(0))
    live, average = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(average.weight, 1e6)
    for step, value in enumerate(values):
        nn.init.constant_(live.weight, float(value))
        average_into(average, live, power_decay(gamma, step))
    tau = torch.arange(1, 51, dtype=torch.float64)
    weight = (tau ** (gamma + 1) - (tau - 1) ** (gamma + 1)) / 50 ** (gamma + 1)
    assert float(average.weight.detach()) == pytest.approx(float((weight * values).sum()), abs=1e-5)


def test_the_average_is_the_one_that_was_asked_for(teacher, tmp_path):
    """Also of a method that exports its live weights; one update alone is exported as it is."""
    settings = {"iterations": "1", "ema_decay": "0", "batch_size": "8"}
    distill("consistency", teacher, tmp_path / "live", steps=4, settings=settings)
    distill("consistency", teacher, tmp_path / "first", steps=4, settings=settings, ema_power=6.94)
    assert_same(tmp_path / "live", tmp_path / "first")
    train("grid25-labelled-teacher", tmp_path / "power", settings=TEACHER, ema_power=6.94)
    with pytest.raises(AssertionError):
        assert_same(tmp_path / "power", teacher)
    assert load_student(tmp_path / "power").spec.provenance["loop"] == {"ema_power": 6.94}


@pytest.mark.parametrize("gamma", [-0.1, math.nan, math.inf])
def test_powers_that_are_none(tmp_path, gamma):
    with pytest.raises(UsageError, match="ema_power must be"):
        train("grid25-labelled-teacher", tmp_path / "t", settings=TEACHER, ema_power=gamma)
