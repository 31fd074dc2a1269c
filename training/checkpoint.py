"""Checkpoints of a training run: whole directories of safetensors and JSON, replaced atomically, no pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from distill_rt.core.directory import publish, write_file
from distill_rt.core.errors import ArtifactError
from distill_rt.core.manifest import sha256_of

FORMAT_VERSION = 1


@dataclass(kw_only=True)
class TrainState:
    """Where a run is: the next step, its networks, the exported average, the optimiser and the losses so far."""

    step: int
    networks: dict[str, nn.Module]
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    losses: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that must be restored, flat; shared storage is cloned."""
        flat = {}
        modules = {f"network/{name}": net for name, net in self.networks.items()}
        if self.average is not None:
            modules["average"] = self.average
        for prefix, module in modules.items():
            flat |= {f"{prefix}/{key}": value for key, value in module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            flat |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in slots.items()}
        return {key: value.detach().clone().contiguous() for key, value in flat.items()}

    def restore(self, flat: Mapping[str, Tensor]) -> None:
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in flat.items():
            prefix, _, name = key.rpartition("/")
            groups.setdefault(prefix, {})[name] = value
        for name, network in self.networks.items():
            network.load_state_dict(groups[f"network/{name}"])
        if self.average is not None:
            self.average.load_state_dict(groups["average"])
        state = self.optimizer.state_dict()
        slots = {int(p.split("/")[1]): values for p, values in groups.items() if p.startswith("optimizer/")}
        self.optimizer.load_state_dict({"state": slots, "param_groups": state["param_groups"]})


def save_checkpoint(directory: Path, state: TrainState, config: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `directory`; a reader sees the old one or the new one."""
    with publish(directory, force=True) as partial:
        save_file(state.tensors(), partial / "state.safetensors")
        head = {
            "format": "distill-rt/checkpoint",
            "format_version": FORMAT_VERSION,
            "step": state.step,
            "config": dict(config),
            "losses": state.losses,
            "sha256": sha256_of(partial / "state.safetensors"),
        }
        write_file(partial / "checkpoint.json", json.dumps(head, indent=1).encode())


def read_step(directory: Path, config: Mapping[str, Any]) -> tuple[int, list[tuple[int, float]]]:
    """The step of a checkpoint that belongs to `config`, and its losses.

    Raises:
        ArtifactError: damaged, of another version, or made with another configuration (the first difference is named).
    """
    try:
        head = json.loads((directory / "checkpoint.json").read_bytes())
        if head["format"] != "distill-rt/checkpoint" or head["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {head['format']} version {head['format_version']}")
        step, losses, theirs = int(head["step"]), [(int(i), float(v)) for i, v in head["losses"]], dict(head["config"])
        damaged = sha256_of(directory / "state.safetensors") != head["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unusable(directory, str(error)) from error
    if damaged:
        raise _unusable(directory, "state.safetensors has changed since it was written")
    ours = json.loads(json.dumps(dict(config)))
    for key in sorted(set(ours) | set(theirs)):
        if ours.get(key) != theirs.get(key):
            raise ArtifactError(
                f"the checkpoint {directory} belongs to another configuration: {key} is "
                f"{theirs.get(key)!r} there and {ours.get(key)!r} now",
                code="checkpoint-config",
                hint="resume with the settings that it was started with, or start anew with --force",
            )
    return step, losses


def load_tensors(directory: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(directory / "state.safetensors")
    except (OSError, SafetensorError) as error:
        raise _unusable(directory, str(error)) from error
    return tensors


def config_digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(dict(config), sort_keys=True).encode()).hexdigest()


def _unusable(directory: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"the checkpoint {directory} cannot be used: {what}",
        code="checkpoint-damaged",
        hint="start anew with --force",
    )
