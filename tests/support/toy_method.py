"""A method that notes what the trainer asks of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from closed_forms import plain_spec
from torch import nn

from distill_rt.training.config import TrainConfig
from distill_rt.training.data import Grid25
from distill_rt.training.methods.base import Phase
from distill_rt.training.predictor import Teacher
from distill_rt.training.trainer import Trainer

CALLS: list[tuple[Any, ...]] = []


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Two phases that train two networks towards their batch's mean, and note what the trainer asks."""

    name: ClassVar[str] = "toy"

    batch_size: int = 4
    ema_decay: float = 0.0
    first: int = 5
    second: int = 4
    rate: float = 0.1
    scale: float = 1.0
    decays: bool = True
    spoil: dict[int, str] = field(default_factory=dict)
    """step -> how its loss goes wrong."""

    def phases(self, teacher):
        return tuple(
            phase
            for phase in (
                Phase(name="one", network="student", start=0, iterations=self.first),
                Phase(name="two", network="student", start=self.first, iterations=self.second, target=2),
            )
            if phase.iterations
        )

    def learning_rate(self, phase, step):
        CALLS.append(("rate", phase.name, step))
        return self.rate * (1 - (step - phase.start) / phase.iterations if self.decays else 1.0)

    def contract(self, teacher):
        return teacher

    def networks(self, teacher):
        return {"student": nn.Linear(2, 2), "other": nn.Linear(2, 2)}

    def begin(self, phase, networks):
        CALLS.append(("begin", phase.name))
        networks["other"].load_state_dict(networks["student"].state_dict())

    def losses(self, phase, step, networks, teacher, batch, draws):
        CALLS.append(("losses", phase.name, step))
        points = batch.x0_BCHW.flatten(1)
        error = networks["student"](points) - networks["other"](points).detach() + 1.0
        spoiled = {
            "nan loss": lambda: error.sum() * float("nan"),
            "inf loss": lambda: error.sum() * float("inf"),
            "nan gradient": lambda: (error - error).square().sum().sqrt(),
        }
        if step in self.spoil:
            return {"error": spoiled[self.spoil[step]]()}
        return {"error": self.scale * error.square().mean(), "size": 0.01 * error.abs().mean()}

    def after_step(self, phase, step, networks):
        CALLS.append(("after", phase.name, step))


def trainer(method: Any = None, checkpoint: Path | None = None, *, seed: int = 0, every: int = 3) -> Trainer:
    method = method or Toy()
    identity = {"seed": seed, **{key: value for key, value in dataclasses.asdict(method).items() if key != "spoil"}}
    config = TrainConfig(method=method, seed=seed, checkpoint=checkpoint, checkpoint_every=every, identity=identity)
    return Trainer(config, Grid25(), Teacher(plain_spec(2), nn.Identity()))


def result(run: Trainer, **arguments: Any) -> tuple[list[torch.Tensor], list[tuple[int, float]]]:
    network, losses = run.run(**arguments)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    return [value.clone() for value in network.state_dict().values()], losses


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and a[1] == b[1]
