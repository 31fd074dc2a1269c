"""One process or many: ``torchrun`` starts them, each takes its share of every batch, gradients are averaged over them.

A method may call its networks as it likes (several times a step, inside of a sampler, under a wrapper of its own), so nothing
is hooked into their forward passes: after the backward pass the gradients of the phase's network are averaged in one reduction.
Every process holds the same networks, averages and optimiser, and draws the numbers of its own samples of the global batch; a
loss that is a mean over its batch therefore has the gradient that one process would compute.

All of it is the identity in a run of one process.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, distributed, nn

from distill_rt.core.errors import UsageError
from distill_rt.training.device import CPU

Parallel = Literal["none", "ddp", "fsdp"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Processes:
    """This process among all of the run; rank 0 writes files and talks to people."""

    rank: int = 0
    count: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean over the processes of each value, the same bits in all of them."""
        if self.count == 1:
            return list(values)
        summed = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(summed)
        return [float(value) / self.count for value in summed]

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace every gradient by its mean over the processes; which parameters have one must not differ between them."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        distributed.all_reduce(flat)
        flat /= self.count
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def copy_from_main(self, modules: Iterable[nn.Module]) -> None:
        """Give every process the weights and buffers of rank 0: initial weights may differ between kinds of processors."""
        if self.count > 1:
            for module in modules:
                for value in module.state_dict().values():
                    distributed.broadcast(value, src=0)

    def wait(self) -> None:
        """Until all processes are here."""
        if self.count > 1:
            distributed.barrier()


def gathered(local_B: Tensor) -> Tensor:
    """The values of all processes, in the order of the global batch."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return local_B
    parts = [torch.empty_like(local_B) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, local_B.contiguous())
    return torch.cat(parts)


@contextlib.contextmanager
def joined_processes(device: torch.device = CPU) -> Iterator[Processes]:
    """The processes that torchrun started together, from its environment; one process without it.

    They part when the run is over. A caller of several runs joins them itself, by `init_process_group`. Tensors on the
    processor go over gloo, those on a GPU over NCCL.

    Args:
        device: of this process.

    Raises:
        UsageError: torch was built without `torch.distributed`, or the environment says only half.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)  # NCCL uses the current one
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if distributed.is_available() and distributed.is_initialized():  # by the caller, whose it stays
        yield Processes(rank=distributed.get_rank(), count=distributed.get_world_size())
        return
    if count == 1:
        yield Processes()
        return
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {count}, but {', '.join(missing)} of the environment says not who and where",
            code="environment-incomplete",
            hint="start the processes with torchrun, or unset WORLD_SIZE",
        )
    if not distributed.is_available():
        raise UsageError(
            f"{count} processes were started, and this torch cannot connect them",
            code="no-distributed",
            hint="install a torch with torch.distributed, or start one process",
        )
    distributed.init_process_group("gloo" if device.type == "cpu" else "cpu:gloo,cuda:nccl")
    try:
        yield Processes(rank=distributed.get_rank(), count=count)
    finally:
        distributed.destroy_process_group()
