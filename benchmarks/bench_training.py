"""One training step through our `Trainer` against the same step written out in plain torch: what the abstraction costs.

    pytest benchmarks/bench_training.py --benchmark-json training.json

Each group is one method on one teacher. The floor draws nothing and looks nothing up: teacher forward passes, student forward
and backward, gradient clipping and the optimiser, on a batch and noise that are ready. Both must come to the same loss. Set
OMP_NUM_THREADS to fix the threads of torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill_rt.core.prediction import ddim_jump
from distill_rt.models import build_network
from distill_rt.training.config import TrainConfig
from distill_rt.training.data import load_dataset
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.methods import Consistency, Denoising
from distill_rt.training.methods.base import Method
from distill_rt.training.predictor import Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.trainer import Trainer

BATCH_SIZE = 128
LEVELS = 24
METHODS: dict[str, Method] = {
    "denoising": Denoising(steps=10**6, batch_size=BATCH_SIZE, ema_decay=0.0),
    "consistency": Consistency(
        steps=4, num_levels=LEVELS, solver_order=1, iterations=10**6, batch_size=BATCH_SIZE, ema_decay=0.0
    ),
}


def make_teacher(recipe: str) -> Teacher:
    torch.manual_seed(0)
    spec = RECIPES[recipe]().spec
    network = build_network(spec.networks[0])
    for parameter in network.parameters():  # fresh networks answer zero, and the loss could not tell right from wrong
        nn.init.normal_(parameter, std=0.02)
    return Teacher(spec, network)


def make_trainer(method: Method, recipe: str) -> Trainer:
    config = TrainConfig(method=method, identity={})
    return Trainer(config, load_dataset(RECIPES[recipe]().dataset), make_teacher(recipe))


def denoising_floor(trainer: Trainer) -> Callable[[], Tensor]:
    """The loss of step 0, everything but the network's work done ahead."""
    spec, network = trainer.teacher.spec, trainer.state.networks["student"]
    draws = Draws(0, 0, BATCH_SIZE)
    batch = trainer.dataset.batch(draws)
    t = draws.uniform(Purpose.TIME)
    x = spec.process.add_noise(batch.x0_BCHW, draws.normal(spec.sample_shape), t)
    level = spec.process.at(t).like(x)
    scaled, time = spec.parameterization.coefficients(level)[2] * x, spec.process.model_time(t)
    target = spec.parameterization.target(x, batch.x0_BCHW, level)
    label = []
    if batch.label_B is not None:
        assert spec.condition.null_label is not None
        label = [batch.label_B.masked_fill(draws.uniform(Purpose.CONDITION_DROP) < 0.1, spec.condition.null_label)]
    return lambda: (network(scaled, time, *label) - target).square().mean()


def consistency_floor(trainer: Trainer) -> Callable[[], Tensor]:
    """The guided teacher's step (two evaluations in one batch), the target's and the student's evaluation."""
    spec, networks = trainer.teacher.spec, trainer.state.networks
    teacher = trainer.teacher.network
    draws = Draws(0, 0, BATCH_SIZE)
    batch = trainer.dataset.batch(draws)
    i = draws.integers(1, LEVELS + 1, Purpose.TIME)
    t, s = i / LEVELS, (i - 1) / LEVELS
    x = spec.process.add_noise(batch.x0_BCHW, draws.normal(spec.sample_shape), t)
    coefficients = {
        name: [value[:, None, None, None] for value in spec.parameterization.coefficients(spec.process.at(time))]
        for name, time in (("t", t), ("s", s))
    }
    times = {"t": spec.process.model_time(t), "s": spec.process.model_time(s)}
    levels = spec.process.at(t), spec.process.at(s)
    label = batch.label_B
    assert label is not None
    null = torch.full_like(label, spec.condition.null_label or 0)
    w = spec.guidance.min + (spec.guidance.max - spec.guidance.min) * draws.uniform(Purpose.GUIDANCE)

    def x0(network: nn.Module, state: Tensor, name: str, *conditions: Tensor) -> Tensor:
        p, q, c_in = coefficients[name]
        answer: Tensor = p * state + q * network(c_in * state, times[name], *conditions)
        return answer

    def loss() -> Tensor:
        with torch.no_grad():
            p, q, c_in = coefficients["t"]
            both = teacher(torch.cat([c_in * x] * 2), torch.cat([times["t"]] * 2), torch.cat([null, label]))
            F_u, F_c = both.chunk(2)
            guided = p * x + q * (F_u + w[:, None, None, None] * (F_c - F_u))
            x_s = ddim_jump(x, guided, *levels)
            target = x0(networks["target"], x_s, "s", label, w)
        return (x0(networks["student"], x, "t", label, w) - target).square().mean()

    return loss


FLOORS = {"denoising": denoising_floor, "consistency": consistency_floor}


@pytest.mark.parametrize("variant", ["floor", "trainer"])
@pytest.mark.parametrize("recipe", ["digits-teacher", "grid25-labelled-teacher"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_training_step(benchmark: Any, method: str, recipe: str, variant: str) -> None:
    benchmark.group = f"{method} step, {recipe}, batch {BATCH_SIZE}"
    trainer = make_trainer(METHODS[method], recipe)
    phase = trainer.phases[0]
    network = trainer.state.networks["student"].train()
    first = FLOORS[method](make_trainer(METHODS[method], recipe))().item()
    if variant == "trainer":
        step: Callable[[], float] = lambda: trainer._step(phase, []).loss  # noqa: E731
    else:
        loss_of, optimizer = FLOORS[method](trainer), trainer.state.optimizer
        for group in optimizer.param_groups:
            group["lr"] = trainer.method.learning_rate(phase, 0)

        def step() -> float:
            loss = loss_of()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            return loss.item()

    assert step() == pytest.approx(first, rel=1e-4)  # both come to the same loss
    last = benchmark(step)
    assert math.isfinite(last)
    benchmark.extra_info["images_per_step"] = BATCH_SIZE
    benchmark.extra_info["torch_threads"] = torch.get_num_threads()
