"""Weights shared out over the processes (FSDP2): each keeps a part of every parameter, and its part of the moments.

torch's `fully_shard` gathers a block's parameters when it is called, frees them afterwards, and averages their gradients over
the processes in the backward pass, where `parallel.Processes.average_gradients` does it after it for whole copies. What is
sharded must be called as a module of its own, so methods fit whose networks are students and copies of them; those that
train several networks as one, or read the inside of one, are refused.

The teacher stays whole in every process.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, distributed, nn

from distill_rt.core.errors import UsageError
from distill_rt.training.blocks import blocks_of
from distill_rt.training.methods.base import Phase
from distill_rt.training.parallel import Processes


def check_shardable(networks: Mapping[str, nn.Module], phases: Sequence[Phase], processes: Processes) -> None:
    """Raises:
    UsageError: one process, or a method whose networks cannot be sharded.
    """
    if processes.count == 1:
        raise UsageError(
            "fsdp shares weights out over processes, and this is one",
            code="parallel-invalid",
            hint="start several: torchrun --nproc-per-node N -m distill_rt.cli.main ...",
        )
    student = networks["student"]
    around = [name for name, network in networks.items() if network is not student and student in network.modules()]
    odd = next((phase.network for phase in phases if phase.network != "student"), next(iter(around), None))
    if odd is not None:
        raise UsageError(
            f"fsdp shards a student that trains alone, and this method trains {odd!r}, which is more than it",
            code="parallel-invalid",
            hint="use --parallel ddp",
        )


def shard(network: nn.Module, device: torch.device) -> None:
    """Keep this process's part of every parameter, in place; a network without parameters stays whole."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if next(network.parameters(), None) is None:
        return
    for parameter in network.parameters():
        parameter.data = parameter.data.contiguous()  # parts are cut along the first axis
    # It warns of in-place operations on a network's output, which no method here does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
    for block in blocks_of(network):
        fully_shard(block, mesh=mesh)
    # Between two calls there are parts only, so that averages, optimiser and checkpoints never meet a gathered weight.
    fully_shard(network, mesh=mesh, reshard_after_forward=True)


def whole(value: Tensor) -> Tensor:
    """The value of all parts; every process must ask. Whole tensors are returned as they are."""
    full: Tensor = value.full_tensor() if hasattr(value, "full_tensor") else value
    return full


def gather_into(target: nn.Module, network: nn.Module) -> None:
    """Copy the weights of a sharded network into a whole one of the same architecture; every process must ask."""
    target.load_state_dict({key: whole(value) for key, value in network.state_dict().items()})
