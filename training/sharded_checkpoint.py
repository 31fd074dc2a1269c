"""Checkpoints of sharded runs: every process writes its own parts, as safetensors, through torch.distributed.checkpoint.

The files go to a fresh directory beside the final name, which the first process renames when all of them are whole. A later
run may have another number of processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from distill_rt.core.digest import sha256_of
from distill_rt.core.directory import publish, resource_errors
from distill_rt.core.errors import ResourceError
from distill_rt.training.checkpoint import TrainState, unusable, write_head
from distill_rt.training.parallel import Processes


def save_sharded(directory: Path, state: TrainState, config: Mapping[str, Any], processes: Processes) -> None:
    """Replace the checkpoint at `directory`; all processes call, and all see the directory.

    Raises:
        ResourceError: one of them cannot write; the old checkpoint stays.
    """
    with _published_by_main(directory, processes) as partial:
        writer = HuggingFaceStorageWriter(str(partial), save_distributed=True)
        with resource_errors(directory):
            try:
                save(state.tensors(), storage_writer=writer)
            except CheckpointException as error:  # of all processes; what stopped one of them is inside
                causes = [cause for cause, _ in error.failures.values() if isinstance(cause, OSError)]
                raise (causes[0] if causes else error) from error
        if processes.is_main:
            shards = {path.name: sha256_of(path) for path in sorted(partial.glob("*.safetensors"))}
            write_head(partial, state, config, {"shards": shards})
    processes.wait()


@contextlib.contextmanager
def _published_by_main(directory: Path, processes: Processes) -> Iterator[Path]:
    """`publish` of the first process, with its fresh directory told to the others."""
    with contextlib.ExitStack() as stack:
        told: list[str | None] = [None]
        try:
            if processes.is_main:
                told = [str(stack.enter_context(publish(directory, force=True, ours="checkpoint.json")))]
        finally:
            distributed.broadcast_object_list(told, src=0)
        if told[0] is None:
            raise ResourceError(f"the first process cannot write {directory}", code="not-writable")
        yield Path(told[0])


def restore_sharded(directory: Path, state: TrainState) -> None:
    """Fill the parts of this process from a checkpoint that `read_head` accepted; all processes call."""
    try:
        reader = HuggingFaceStorageReader(str(directory))
        saved = reader.read_metadata().state_dict_metadata
        flat = {key: value for key, value in state.tensors().items() if not key.startswith("optimizer/")}
        flat |= {key: _empty_slot(key, state.optimizer) for key in saved if key.startswith("optimizer/")}
        if flat.keys() != saved.keys():
            raise ValueError(f"other tensors: {', '.join(sorted(flat.keys() ^ saved.keys())):.100}")
        load(flat, storage_reader=reader)
        state.restore(flat)
    except (OSError, KeyError, IndexError, RuntimeError, ValueError, CheckpointException) as error:
        raise unusable(directory, " ".join(str(error).split())[:200]) from error


def _empty_slot(key: str, optimizer: torch.optim.Optimizer) -> Tensor:
    """What ``optimizer/INDEX/NAME`` is read into: moments are cut as their parameter is, the step count is one number."""
    _, index, name = key.split("/")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return torch.zeros(()) if name == "step" else torch.zeros_like(parameters[int(index)])
