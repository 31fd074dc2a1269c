"""torch.compile of the networks' forward passes: less time a step on large networks, a minute before the first one."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from distill_rt.models.conditioned import ConditionedNetwork
from distill_rt.models.text_conditioned import TextConditionedUNet


def compile_networks(modules: Iterable[nn.Module]) -> None:
    """Compile every network among the modules and inside of them, in place: names and weights stay."""
    for module in modules:
        for part in module.modules():
            if isinstance(part, ConditionedNetwork | TextConditionedUNet):
                part.compile()


def is_compiled(network: nn.Module) -> bool:
    return network._compiled_call_impl is not None
