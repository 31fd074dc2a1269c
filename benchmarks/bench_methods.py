"""One training step of every method through our `Trainer`, against its networks' work alone: what the loop and the method cost.

    pytest benchmarks/bench_methods.py --benchmark-json methods.json
    python benchmarks/bench_methods.py [--data digits] [--rounds 12] [--only NAME ...]    # both in turns, for the docs;
        # methods that were measured before stay, so two processes may share the work

The floor is recorded from the method: every call of a network in one step, with its inputs and whether gradients flow into
weights or inputs, played back in the same order, then one backward pass, gradient clipping and the optimiser. No draws, no
schedule, no averages, no losses. Set OMP_NUM_THREADS to fix the threads of torch.

The second form writes the ratios to benchmarks/results/training_overhead.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from bench_training import make_trainer
from machine import describe, write_result
from paired import Call, alternate

from distill_rt.training.draws import Draws
from distill_rt.training.methods import METHODS
from distill_rt.training.trainer import Trainer

RESULT = Path(__file__).resolve().parent / "results/training_overhead.json"
STEP = 12
"""Every method's networks are busy in it: generators that move every second, third or fourth step do."""
RECIPE = {"guidance": "grid25-labelled-teacher"}
SKIPPED = {"bespoke", "feature_kd", "gits"}
"""One needs a student, not a teacher, the others train nothing."""


@dataclass(frozen=True)
class NetworkCall:
    network: nn.Module
    inputs: tuple[Tensor, ...]
    has_gradient: bool
    trains: tuple[bool, ...]
    """Which of the weights take a gradient; where none does, only the inputs do."""

    def play(self) -> Tensor | None:
        if not self.has_gradient:
            with torch.no_grad():
                self.network(*self.inputs)
            return None
        for parameter, trains in zip(self.network.parameters(), self.trains, strict=True):
            parameter.requires_grad_(trains)
        output: Tensor = self.network(*self.inputs)
        return output.sum()


@contextlib.contextmanager
def recorded(trainer: Trainer) -> Iterator[list[NetworkCall]]:
    """Every call of the teacher and of the method's networks inside."""
    calls: list[NetworkCall] = []

    def note(network: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        trains = tuple(parameter.requires_grad for parameter in network.parameters())
        flows = any(value.requires_grad for value in inputs)
        has_gradient = torch.is_grad_enabled() and (any(trains) or flows)
        copies = tuple(value.detach().clone().requires_grad_(value.requires_grad) for value in inputs)
        calls.append(NetworkCall(network, copies, has_gradient, trains))

    known = {id(trainer.teacher.network): trainer.teacher.network}
    for network in trainer.state.networks.values():
        # What trains together is a container that is never called itself.
        for part in (network, *network.children()):
            if type(part) is type(trainer.teacher.network):
                known[id(part)] = part
    handles = [network.register_forward_pre_hook(note) for network in known.values()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def floor_of(trainer: Trainer) -> Callable[[], float]:
    phase = trainer.phases[-1]
    network, optimizer = trainer.state.networks[phase.network].train(), trainer.state.optimizer
    for earlier in trainer.phases:
        trainer.method.begin(earlier, trainer.state.networks)
    draws = Draws(0, STEP, trainer.method.batch_size)
    with recorded(trainer) as calls:
        trainer.method.losses(
            phase, phase.start + STEP, trainer.state.networks, trainer.teacher, trainer.dataset.batch(draws), draws
        )
    assert any(call.has_gradient and any(call.trains) for call in calls)
    for group in optimizer.param_groups:
        group["lr"] = trainer.method.learning_rate(phase, phase.start)

    def step() -> float:
        optimizer.zero_grad()
        outputs = [value for call in calls if (value := call.play()) is not None]
        total = torch.stack(outputs).sum()
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        return total.item()

    return step


def trainer_step(trainer: Trainer) -> Callable[[], float]:
    phase = trainer.phases[-1]
    for earlier in trainer.phases:
        trainer.method.begin(earlier, trainer.state.networks)
    trainer._enter(phase)
    trainer.state.step = phase.start + STEP
    return lambda: trainer._step(phase, []).loss


def recipe_of(name: str, data: str) -> str:
    return RECIPE.get(name, f"{data}-teacher") if data == "grid25" else f"{data}-teacher"


@pytest.mark.parametrize("variant", ["floor", "trainer"])
@pytest.mark.parametrize("data", ["grid25", "digits"])
@pytest.mark.parametrize("name", sorted(set(METHODS) - SKIPPED))
def test_method_step(benchmark: Any, name: str, data: str, variant: str) -> None:
    recipe = recipe_of(name, data)
    benchmark.group = f"{name} step, {recipe}"
    trainer = make_trainer(METHODS[name](), recipe)
    step = trainer_step(trainer) if variant == "trainer" else floor_of(trainer)
    assert math.isfinite(step())
    assert math.isfinite(benchmark(step))
    benchmark.extra_info["images_per_step"] = trainer.method.batch_size
    benchmark.extra_info["torch_threads"] = torch.get_num_threads()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = sorted(set(METHODS) - SKIPPED)
    parser.add_argument("--data", choices=("grid25", "digits"), default="digits")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", default=names)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    about = f"One training step on {args.data}, over its networks' work alone"
    for name in args.only:
        recipe = recipe_of(name, args.data)
        steps = {
            "trainer": trainer_step(make_trainer(METHODS[name](), recipe)),
            "floor": floor_of(make_trainer(METHODS[name](), recipe)),
        }
        samples = alternate({key: _finite(step) for key, step in steps.items()}, rounds=args.rounds, warmup=1)
        row = {key: samples.summary(key)["median_ms"] for key in steps} | samples.ratio("trainer", "floor")
        row["rounds"] = args.rounds
        print(f"{name}: {row}", flush=True)
        with FileLock(args.out.with_suffix(".lock")):  # of two processes, one on each core
            kept = json.loads(args.out.read_text()) if args.out.is_file() else {}
            rows = dict(sorted(((kept["methods"] if kept.get("about") == about else {}) | {name: row}).items()))
            head = {"name": "training_overhead", "about": about, "methods": rows}
            write_result(args.out, head | describe(torch.get_num_threads()))
    args.out.with_suffix(".lock").unlink(missing_ok=True)


def _finite(step: Callable[[], float]) -> Call:
    def call() -> np.ndarray[Any, Any]:
        loss = step()
        assert math.isfinite(loss)
        return np.array(loss)

    return call


if __name__ == "__main__":
    main()
