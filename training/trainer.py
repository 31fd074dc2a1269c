"""The training loop: data, losses, update, average, checkpoint. It knows no method by name."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_rt.core.errors import ResourceError, UsageError
from distill_rt.training.blocks import recompute_in_backward
from distill_rt.training.checkpoint import TrainState, read_head, restore_tensors, save_checkpoint
from distill_rt.training.compiled import compile_networks
from distill_rt.training.config import TrainConfig, check_method, part_size
from distill_rt.training.copies import average_into, frozen_copy, power_decay, warmed_decay
from distill_rt.training.data import Dataset
from distill_rt.training.device import CPU
from distill_rt.training.draws import Draws
from distill_rt.training.journal import Observer, StepRecord
from distill_rt.training.methods.base import Phase
from distill_rt.training.parallel import Processes
from distill_rt.training.predictor import Teacher
from distill_rt.training.progress import Progress
from distill_rt.training.sharding import check_shardable, gather_into, shard, whole
from distill_rt.training.signals import deferred_signals


@dataclass(frozen=True, kw_only=True, slots=True)
class _Taken:
    """What one step leaves; fields as in `StepRecord`, and whether a signal asks to stop."""

    loss: float
    losses: Mapping[str, Tensor]
    gradient_norm: Tensor
    stop: bool


class Trainer:
    """Runs one method to its end; `run` returns the network to export, on the processor, and the losses for the record.

    Args:
        processes: this one among those that train together.

    Raises:
        UsageError: settings that cannot train, or a batch that does not divide by the processes and their parts.
    """

    def __init__(
        self, config: TrainConfig, dataset: Dataset, teacher: Teacher, processes: Processes | None = None
    ) -> None:
        self.config = config
        self.processes = processes or Processes()
        if config.parallel == "none" and self.processes.count > 1:
            raise UsageError(
                f"parallel=none is for one process, and there are {self.processes.count}",
                code="parallel-invalid",
                hint="use --parallel ddp or --parallel fsdp",
            )
        self.dataset = dataset
        self.teacher = teacher
        self.method = config.method
        self.phases = check_method(self.method, teacher.spec)
        self.num_steps = sum(phase.iterations for phase in self.phases)
        self.part_size = part_size(self.method, self.processes.count, config.accumulate)
        torch.manual_seed(config.seed % 2**63)  # initial weights; everything after them comes from Draws
        networks = self.method.networks(teacher)  # made on the processor: the same initial weights for every device
        for network in networks.values():
            network.to(config.device)
        teacher.to(config.device)
        self.processes.copy_from_main(networks.values())
        averaged = self.method.ema_decay > 0.0 or config.ema_power is not None
        average = frozen_copy(networks["student"]) if averaged else None
        if config.checkpoint_activations:
            for network in networks.values():
                recompute_in_backward(network)
        self._whole = self._shard(networks, average) if config.parallel == "fsdp" else None
        if config.compile:
            compile_networks([*networks.values(), teacher.network])
        self.state = TrainState(step=0, networks=networks, average=average, optimizer=_optimizer(networks["student"]))

    def _shard(self, networks: Mapping[str, nn.Module], average: nn.Module | None) -> nn.Module:
        """Shard everything that trains, in place; returns the copy that the result is gathered into."""
        check_shardable(networks, self.phases, self.processes)
        result = frozen_copy(networks["student"]).to(CPU)
        for network in [*networks.values(), *([] if average is None else [average])]:
            shard(network, self.config.device)
        return result

    def run(
        self, *, resume: bool = False, progress: Progress | None = None, observer: Observer | None = None
    ) -> tuple[nn.Module, list[tuple[int, float]]]:
        """Train to the end.

        Args:
            resume: go on from the checkpoint if there is one.
            progress: called after every step.
            observer: told of every step before `progress`; it must not change the networks. Both are the main process's.

        Raises:
            ArtifactError: the checkpoint belongs to another configuration.
            ResourceError: a loss or the result is not finite (the checkpoint is removed: it would lead there again).
            KeyboardInterrupt: interrupted; the checkpoint holds the last complete step.
        """
        state = self.state
        if resume and self.config.checkpoint is not None and self.config.checkpoint.exists():
            self._restore(self.config.checkpoint)
        stop = False
        with _watched_by(observer, state.step), deferred_signals() as received:
            while state.step < self.num_steps and not stop:
                phase = self._phase(state.step)
                if state.step == phase.start:
                    self.method.begin(phase, state.networks)
                    self._enter(phase)
                taken = self._step(phase, received)
                loss, stop = taken.loss, taken.stop
                state.running = running = loss if state.running is None else 0.98 * state.running + 0.02 * loss
                if state.step % max(1, self.num_steps // 200) == 0:
                    state.losses.append((state.step, running))
                state.step += 1
                self._keep(phase)
                if observer is not None:
                    observer.step(self._record(phase, taken))
                if progress is not None:
                    progress(phase.name, state.step, self.num_steps, running)
                if self.processes.count == 1:  # nobody has to agree, so a signal counts until here
                    stop = bool(received)
                if state.step % self.config.checkpoint_every == 0 and state.step < self.num_steps and not stop:
                    self._save()
            if stop:
                self._save()
                self.processes.wait()  # rank 0 writes; whoever ends first would have the others killed
        if stop:
            signal.raise_signal(received[0] if received else signal.SIGTERM)
            raise KeyboardInterrupt  # where the handler does nothing, the caller still learns of it
        exported = self._exported()
        if self.config.compile:
            exported = frozen_copy(exported)  # a copy is not compiled
        if not all(bool(torch.isfinite(value).all()) for value in exported.parameters()):
            raise self._diverged("the weights after the last step are not finite")
        return exported.eval().requires_grad_(False).to(CPU), state.losses

    def _exported(self) -> nn.Module:
        """What would be exported now; of a sharded run every process must ask."""
        exported = self.state.average if self.state.average is not None else self.state.networks["student"]
        if self._whole is None:
            return exported
        gather_into(self._whole, exported)
        return self._whole

    def _record(self, phase: Phase, taken: _Taken) -> StepRecord:
        assert self.state.running is not None
        return StepRecord(
            done=self.state.step,
            phase=phase.name,
            loss=taken.loss,
            running=self.state.running,
            losses=taken.losses,
            learning_rate=self.state.optimizer.param_groups[0]["lr"],
            gradient_norm=taken.gradient_norm,
            student=self._exported() if self._whole is None else None,
        )

    def _restore(self, checkpoint: Path) -> None:
        head = read_head(checkpoint, self.config.identity)
        # The optimiser of the last complete step, even where the next one begins a phase with a new optimiser.
        self._enter(self._phase(max(head.step - 1, 0)))
        if self._whole is None:
            restore_tensors(checkpoint, self.state)
        else:
            from distill_rt.training.sharded_checkpoint import restore_sharded

            restore_sharded(checkpoint, self.state)
        self.state.step, self.state.running, self.state.losses = head.step, head.running, head.losses
        if self.config.kept is not None and self.processes.is_main:
            self.config.kept.drop_after(head.step)

    def _phase(self, step: int) -> Phase:
        return next(phase for phase in reversed(self.phases) if step >= phase.start)

    def _enter(self, phase: Phase) -> None:
        self.state.optimizer = _optimizer(self.state.networks[phase.network], phase.rates)

    def _step(self, phase: Phase, received: list[int]) -> _Taken:
        state, step = self.state, self.state.step
        network = state.networks[phase.network].train()
        state.optimizer.zero_grad()
        parts = [self._backward(phase, part) for part in range(self.config.accumulate)]
        losses = {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
        local = sum(float(torch.stack(list(part.values())).sum()) for part in parts) / len(parts)
        # One process that was told to stop stops all of them, after the same step.
        value, told = self.processes.mean([local, float(bool(received))])
        if not math.isfinite(value):
            raise self._diverged(f"the loss of step {step} ({phase.name}) is {value}")
        if self._whole is None:
            self.processes.average_gradients(network.parameters())  # sharded, the backward pass has done it
        for group in state.optimizer.param_groups:
            group["lr"] = self.method.learning_rate(phase, step) * group["factor"]
        norm = whole(nn.utils.clip_grad_norm_(network.parameters(), self.config.max_gradient_norm))
        state.optimizer.step()
        self.method.after_step(phase, step, state.networks)
        if state.average is not None:
            average_into(state.average, state.networks["student"], self._decay(step))
        return _Taken(loss=value, losses=losses, gradient_norm=norm, stop=told > 0.0)

    def _decay(self, step: int) -> float:
        if self.config.ema_power is not None:
            return power_decay(self.config.ema_power, step)
        return warmed_decay(self.method.ema_decay, step)

    def _backward(self, phase: Phase, part: int) -> dict[str, Tensor]:
        """Add the gradients of one part of this process's share of the batch; returns its losses."""
        first = (self.processes.rank * self.config.accumulate + part) * self.part_size
        draws = Draws(self.config.seed, self.state.step, self.part_size, first_sample=first)
        device = self.config.device
        batch, draws = self.dataset.batch(draws).to(device), draws.on(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            losses = self.method.losses(phase, self.state.step, self.state.networks, self.teacher, batch, draws)
        (torch.stack(list(losses.values())).sum() / self.config.accumulate).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _keep(self, phase: Phase) -> None:
        """Earlier phases aim elsewhere, so their weights are no neighbours of the student."""
        kept, step = self.config.kept, self.state.step
        if kept is None or phase is not self.phases[-1] or not self.processes.is_main:
            return
        if step % kept.every == 0 or step == self.num_steps:
            kept.keep(step, self.state.networks["student"])

    def _save(self) -> None:
        if self.config.checkpoint is None:
            return
        if self._whole is not None:
            from distill_rt.training.sharded_checkpoint import save_sharded  # torch may be built without it

            save_sharded(self.config.checkpoint, self.state, self.config.identity, self.processes)
        elif self.processes.is_main:
            save_checkpoint(self.config.checkpoint, self.state, self.config.identity)

    def _diverged(self, what: str) -> ResourceError:
        if self.config.checkpoint is not None and self.processes.is_main:
            shutil.rmtree(self.config.checkpoint, ignore_errors=True)
        return ResourceError(
            f"training diverged: {what}",
            code="loss-not-finite",
            hint="lower the learning rate: --set peak_learning_rate=...",
        )


def _optimizer(network: nn.Module, rates: Sequence[tuple[str, float]] = ()) -> torch.optim.Optimizer:
    """Parts of the network with a rate of their own are groups of their own, behind the rest."""
    parts: list[dict[str, Any]] = [
        {"params": list(network.get_submodule(part).parameters()), "factor": factor} for part, factor in rates
    ]
    apart = {parameter for part in parts for parameter in part["params"]}
    rest = [parameter for parameter in network.parameters() if parameter not in apart]
    groups = [{"params": rest, "factor": 1.0}, *parts]
    return torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)


@contextlib.contextmanager
def _watched_by(observer: Observer | None, done: int) -> Iterator[None]:
    """Tell the observer that a run begins and, whatever happens, that it is over."""
    if observer is None:
        yield
        return
    observer.begin(done)
    try:
        yield
    finally:
        observer.end()
