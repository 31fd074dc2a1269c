"""What a run is asked for, and whether it can train at all."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.training.device import CPU
from distill_rt.training.kept import KeptWeights
from distill_rt.training.methods.base import Grouped, Method, Phase, Searches
from distill_rt.training.parallel import Parallel


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """What to run.

    Args:
        method: the method with its hyper-parameters.
        seed: of every random number of the run.
        checkpoint: directory of the checkpoint; None keeps none.
        checkpoint_every: training steps between two checkpoints.
        identity: JSON values that a checkpoint must agree with (method, settings, data, teacher).
        accumulate: parts that a process takes its share of a batch in, one after the other, to need less memory.
        kept: where to keep the student's weights along the last phase; None keeps none.
        precision: ``bf16`` runs the networks under torch's autocast; weights, averages and losses stay float32.
        compile: run the networks through torch.compile.
        checkpoint_activations: compute the inside of every block again in the backward pass instead of keeping it.
        ema_power: gamma of the power-function average (`power_decay`), instead of the method's own average.
        parallel: of several processes. ``ddp``: each holds all weights, gradients are averaged; ``fsdp``: each holds a part of
            every weight (`sharding`); ``none``: there is one process.
        device: where networks, averages, batches and draws are; data and random numbers are made on the processor.

    Raises:
        UsageError: a seed or a number of steps that is none, or a batch that does not divide.
    """

    method: Method
    seed: int = 0
    checkpoint: Path | None = None
    checkpoint_every: int = 250
    max_gradient_norm: float = 1.0
    identity: Mapping[str, Any]
    accumulate: int = 1
    precision: Literal["fp32", "bf16"] = "fp32"
    kept: KeptWeights | None = None
    compile: bool = False
    checkpoint_activations: bool = False
    ema_power: float | None = None
    parallel: Parallel = "ddp"
    device: torch.device = CPU

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if self.checkpoint_every < 1:
            raise UsageError(
                f"checkpoint_every must be at least 1, got {self.checkpoint_every}", code="setting-invalid"
            )
        if self.accumulate < 1:
            raise UsageError(f"accumulate must be at least 1, got {self.accumulate}", code="setting-invalid")
        if self.ema_power is not None and not 0.0 <= self.ema_power < math.inf:
            raise UsageError(f"ema_power must be a number >= 0, got {self.ema_power}", code="setting-invalid")
        if self.kept is not None and self.parallel == "fsdp":
            raise UsageError(
                "no process of a sharded run has the whole student, so its weights are not kept along the way",
                code="setting-invalid",
                hint="leave --keep-every out, or use --parallel ddp",
            )
        if self.compile and self.parallel == "fsdp":
            raise UsageError(
                "sharded networks are not compiled here",
                code="setting-invalid",
                hint="choose --compile or --parallel fsdp",
            )


def part_size(method: Method, num_processes: int, accumulate: int) -> int:
    """Samples of one backward pass.

    Raises:
        UsageError: processes and parts do not divide the batch, or tear groups apart (`Grouped`).
    """
    size, rest = divmod(method.batch_size, num_processes * accumulate)
    group = method.group if isinstance(method, Grouped) else 1
    if rest or not size or size % group:
        groups = f" of whole groups of {group}" if group > 1 else ""
        raise UsageError(
            f"a batch of {method.batch_size} does not divide into {num_processes} processes x {accumulate} parts{groups}",
            code="batch-not-divisible",
            hint="change it: --set batch_size=...",
        )
    return size


def check_seed(seed: int) -> None:
    """Refuse a seed that is none."""
    if not 0 <= seed < 2**64:
        raise UsageError(f"seed must be 0 to 2**64 - 1, got {seed}", code="seed-out-of-range")


def check_method(method: Method, teacher: StudentSpec) -> tuple[Phase, ...]:
    """The phases of a method whose common settings can train; what is its own, its dataclass checks.

    Raises:
        UsageError: a batch size, average, learning rate or number of steps that is none.
    """
    phases = method.phases(teacher)
    if method.batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, got {method.batch_size}", code="setting-invalid")
    if not 0.0 <= method.ema_decay < 1.0:
        raise UsageError(f"ema_decay must be in [0, 1), got {method.ema_decay}", code="setting-invalid")
    if not phases and not isinstance(method, Searches):
        raise UsageError("these settings train for no step at all", code="setting-invalid")
    for phase in phases:
        rate = method.learning_rate(phase, phase.start)
        if not (math.isfinite(rate) and rate >= 0.0):
            raise UsageError(f"a learning rate must be a number >= 0, got {rate}", code="setting-invalid")
    return phases
