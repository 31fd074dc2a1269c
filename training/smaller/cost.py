"""What a network costs, counted from the network itself."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distill_rt.core.spec import StudentSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Cost:
    """Args: parameters: of all weights; flops: of one evaluation of one image.

    A multiply-add counts as two. Matrix products, convolutions and attention are counted; norms, activations and sums are
    not, as in published figures.
    """

    parameters: int
    flops: int


def network_cost(spec: StudentSpec, network: nn.Module) -> Cost:
    """Cost of one evaluation of one image with the inputs of the contract."""
    dtypes = {"float32": torch.float32, "int64": torch.int64}
    inputs = [torch.zeros(tensor.concrete(1), dtype=dtypes[tensor.dtype]) for tensor in spec.network_inputs()]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(*inputs)
    return Cost(parameters=sum(value.numel() for value in network.parameters()), flops=counter.get_total_flops())
