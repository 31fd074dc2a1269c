"""Where training computes. One place decides; everything else goes where the networks are.

Random numbers, data and sampling tables are made on the processor, the same bits for every device, and moved.
"""

from __future__ import annotations

import os
from typing import Literal

import torch
from torch import nn

from distill_rt.core.errors import UsageError

DeviceChoice = Literal["auto", "cpu", "cuda"]
CPU = torch.device("cpu")


def choose_device(wanted: DeviceChoice) -> torch.device:
    """The device of this process: ``auto`` is a CUDA device where torch sees one; of several, torchrun's LOCAL_RANK says which.

    Raises:
        UsageError: no such device.
    """
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise UsageError(
            "torch sees no CUDA device here", code="no-device", hint="use --device cpu, or install a torch with CUDA"
        )
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise UsageError(
            f"process {index} of this machine has no CUDA device of its own: there are {count}",
            code="no-device",
            hint=f"start at most {count} processes on it: torchrun --nproc-per-node {count}",
        )
    return torch.device("cuda", index)


def device_of(network: nn.Module) -> torch.device:
    """Where the weights of a network are; one without weights computes on the processor."""
    weight = next(network.parameters(), None)
    return CPU if weight is None else weight.device
