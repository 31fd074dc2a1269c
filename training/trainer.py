"""The training loop: data, losses, update, average, checkpoint. It knows no method by name."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from distill_rt.core.errors import ResourceError
from distill_rt.training.checkpoint import TrainState, load_tensors, read_step, save_checkpoint
from distill_rt.training.copies import average_into, frozen_copy, warmed_decay
from distill_rt.training.data import Dataset
from distill_rt.training.draws import Draws
from distill_rt.training.methods.base import Method, Phase
from distill_rt.training.predictor import Teacher

Progress = Callable[[str, int, int, float], None]
"""Called as progress(phase name, steps done, steps in all, running loss)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """What to run.

    Args:
        method: the method with its hyper-parameters.
        seed: of every random number of the run.
        checkpoint: directory of the checkpoint; None keeps none.
        checkpoint_every: training steps between two checkpoints.
        identity: JSON values that a checkpoint must agree with (method, settings, data, teacher).
    """

    method: Method
    seed: int = 0
    checkpoint: Path | None = None
    checkpoint_every: int = 250
    max_gradient_norm: float = 1.0
    identity: Mapping[str, Any]


class Trainer:
    """Runs one method to its end; `run` returns the network to export and the losses for the record."""

    def __init__(self, config: TrainConfig, dataset: Dataset, teacher: Teacher) -> None:
        self.config = config
        self.dataset = dataset
        self.teacher = teacher
        self.method = config.method
        self.phases = self.method.phases(teacher.spec)
        self.num_steps = sum(phase.iterations for phase in self.phases)
        torch.manual_seed(config.seed % 2**63)  # initial weights; everything after them comes from Draws
        networks = self.method.networks(teacher)
        average = frozen_copy(networks["student"]) if self.method.ema_decay else None
        self.state = TrainState(step=0, networks=networks, average=average, optimizer=_optimizer(networks["student"]))

    def run(
        self, *, resume: bool = False, progress: Progress | None = None
    ) -> tuple[nn.Module, list[tuple[int, float]]]:
        """Train to the end.

        Args:
            resume: go on from the checkpoint if there is one.

        Raises:
            ArtifactError: the checkpoint belongs to another configuration.
            ResourceError: a loss is not finite.
            KeyboardInterrupt: interrupted; the checkpoint holds the last complete step.
        """
        state, running = self.state, None
        if resume and self.config.checkpoint is not None and self.config.checkpoint.is_dir():
            state.step, state.losses = read_step(self.config.checkpoint, self.config.identity)
            self._enter(self._phase(max(state.step - 1, 0)))
            state.restore(load_tensors(self.config.checkpoint))
        with _deferred_signals() as received:
            while state.step < self.num_steps:
                if received:
                    self._save()
                    break
                phase = self._phase(state.step)
                if state.step == phase.start:
                    self.method.begin(phase, state.networks)
                    self._enter(phase)
                loss = self._step(phase)
                running = loss if running is None else 0.98 * running + 0.02 * loss
                if state.step % max(1, self.num_steps // 200) == 0:
                    state.losses.append((state.step, running))
                state.step += 1
                if progress is not None:
                    progress(phase.name, state.step, self.num_steps, running)
                if state.step % self.config.checkpoint_every == 0 and state.step < self.num_steps:
                    self._save()
        if received and state.step < self.num_steps:
            signal.raise_signal(received[0])
            raise KeyboardInterrupt  # where the process ignores that signal, the caller still learns of it
        exported = state.average if state.average is not None else state.networks["student"]
        return exported.eval().requires_grad_(False), state.losses

    def _phase(self, step: int) -> Phase:
        return next(phase for phase in reversed(self.phases) if step >= phase.start)

    def _enter(self, phase: Phase) -> None:
        self.state.optimizer = _optimizer(self.state.networks[phase.network])

    def _step(self, phase: Phase) -> float:
        state, step = self.state, self.state.step
        draws = Draws(self.config.seed, step, self.method.batch_size)
        network = state.networks[phase.network].train()
        losses = self.method.losses(phase, step, state.networks, self.teacher, self.dataset.batch(draws), draws)
        loss = torch.stack(list(losses.values())).sum()
        value = loss.item()
        if not torch.isfinite(loss):
            raise ResourceError(
                f"training diverged: the loss of step {step} ({phase.name}) is {value}",
                code="loss-not-finite",
                hint="lower the learning rate: --set peak_learning_rate=...",
            )
        for group in state.optimizer.param_groups:
            group["lr"] = self.method.learning_rate(phase, step)
        state.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), self.config.max_gradient_norm)
        state.optimizer.step()
        self.method.after_step(phase, step, state.networks)
        if state.average is not None:
            average_into(state.average, state.networks["student"], warmed_decay(self.method.ema_decay, step))
        return value

    def _save(self) -> None:
        if self.config.checkpoint is not None:
            save_checkpoint(self.config.checkpoint, self.state, self.config.identity)


def _optimizer(network: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(network.parameters(), lr=0.0, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)


@contextlib.contextmanager
def _deferred_signals() -> Iterator[list[int]]:
    """Note SIGINT and SIGTERM, so that the loop ends between two steps, where the state is whole; a second one acts at once."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    previous = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    for number in previous:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
