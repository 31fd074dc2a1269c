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
from safetensors.torch import load_file, save
from torch import Tensor, nn

from distill_rt.core.digest import sha256_of
from distill_rt.core.directory import publish, write_file
from distill_rt.core.errors import ArtifactError

FORMAT_VERSION = 1
STATE = "state.safetensors"


@dataclass(kw_only=True)
class TrainState:
    """Where a run is: the next step, its networks, the exported average, the optimiser and the losses so far.

    Args:
        running: running average of the loss, None before the first step.
        losses: (step, running) now and then, for the record.
    """

    step: int
    networks: dict[str, nn.Module]
    average: nn.Module | None
    optimizer: torch.optim.Optimizer
    running: float | None = None
    losses: list[tuple[int, float]] = dataclasses.field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that must be restored, flat; shared storage is cloned."""
        flat: dict[str, Tensor] = {}
        modules = {f"network/{name}": net for name, net in self.networks.items()}
        if self.average is not None:
            modules["average"] = self.average
        for prefix, module in modules.items():
            flat |= {f"{prefix}/{key}": value for key, value in module.state_dict().items()}
        for index, slots in self.optimizer.state_dict()["state"].items():
            flat |= {f"optimizer/{index}/{key}": torch.as_tensor(value) for key, value in slots.items()}
        return {key: value.detach().clone().contiguous() for key, value in flat.items()}

    def restore(self, flat: Mapping[str, Tensor]) -> None:
        """Inverse of `tensors`.

        Raises:
            KeyError, RuntimeError, ValueError: tensors of other networks.
        """
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
        _lay_out_like_parameters(self.optimizer)


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """What `checkpoint.json` says beside the tensors; fields as in `TrainState`."""

    step: int
    running: float | None
    losses: list[tuple[int, float]]


def _lay_out_like_parameters(optimizer: torch.optim.Optimizer) -> None:
    """Give restored moments their parameter's memory format.

    Fused optimisers walk parameter, gradient and moments as flat memory, so moments that come back contiguous beside a
    channels-last parameter would be applied to the wrong weights.
    """
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                slots[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def save_checkpoint(directory: Path, state: TrainState, config: Mapping[str, Any]) -> None:
    """Replace the checkpoint at `directory`; a reader sees the old one or the new one."""
    with publish(directory, force=True, ours="checkpoint.json") as partial:
        write_file(partial / STATE, save(state.tensors()))
        write_head(partial, state, config, {"sha256": sha256_of(partial / STATE)})


def write_head(partial: Path, state: TrainState, config: Mapping[str, Any], digests: Mapping[str, Any]) -> None:
    """Write `checkpoint.json`: last, when what it vouches for is there.

    Args:
        digests: ``sha256`` of the file `STATE`, or ``shards``, which maps the files of a sharded run to theirs.
    """
    head = {
        "format": "distill-rt/checkpoint",
        "format_version": FORMAT_VERSION,
        "step": state.step,
        "config": dict(config),
        "running": state.running,
        "losses": state.losses,
        **digests,
    }
    write_file(partial / "checkpoint.json", json.dumps({**head, "digest": _digest(head)}, indent=1).encode())


def restore_tensors(directory: Path, state: TrainState) -> None:
    """Fill the networks and the optimiser of `state` from a checkpoint that `read_head` accepted."""
    try:
        state.restore(load_file(directory / STATE))
    except (OSError, SafetensorError, KeyError, RuntimeError, ValueError) as error:
        raise unusable(directory, " ".join(str(error).split())[:200]) from error


def read_head(directory: Path, config: Mapping[str, Any]) -> Head:
    """Where the checkpoint stands, if it is intact and belongs to `config`.

    Raises:
        ArtifactError: damaged, of another version, or made with another configuration (the first difference is named).
    """
    try:
        data = json.loads((directory / "checkpoint.json").read_bytes())
        if not isinstance(data, dict) or data.get("format") != "distill-rt/checkpoint":
            raise ValueError("checkpoint.json was not written by distill-rt")
        if data.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"it has format version {data.get('format_version')}, this distill-rt reads {FORMAT_VERSION}"
            )
        if data.pop("digest", None) != _digest(data):
            raise ValueError("checkpoint.json has changed since it was written")
        for name, digest in data.get("shards", {STATE: data.get("sha256")}).items():
            if sha256_of(directory / name) != digest:
                raise ValueError(f"{name} has changed since it was written")
    except OSError as error:
        raise unusable(directory, f"{error.filename}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise unusable(directory, str(error)) from error
    _refuse_other(directory, data["config"], json.loads(json.dumps(dict(config))))
    losses = [(int(step), float(loss)) for step, loss in data["losses"]]
    return Head(step=data["step"], running=data["running"], losses=losses)


def _refuse_other(directory: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], where: str = "") -> None:
    """Raise at the first value that differs, named by its path."""
    for key in sorted(set(ours) | set(theirs)):
        there, here = theirs.get(key, "absent"), ours.get(key, "absent")
        if isinstance(there, dict) and isinstance(here, dict):
            _refuse_other(directory, there, here, f"{where}{key}.")
        elif there != here:
            raise ArtifactError(
                f"the checkpoint {directory} belongs to another configuration: {where}{key} is "
                f"{there!r:.80} there and {here!r:.80} now",
                code="checkpoint-config",
                hint="resume with the settings that it was started with, or start anew with --force",
            )


def _digest(head: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(head, sort_keys=True).encode()).hexdigest()


def unusable(directory: Path, what: str) -> ArtifactError:
    return ArtifactError(
        f"the checkpoint {directory} cannot be used: {what}",
        code="checkpoint-damaged",
        hint="start anew with --force",
    )
