"""Low-rank adapters (Hu et al. 2021, LoRA, arXiv 2106.09685) through the library peft: what trains is ``W + B A``, W frozen.

A student is saved with its adapters merged, so nothing but training knows of them.
"""

from __future__ import annotations

import torch
from torch import nn

from distill_rt.core.optional import require

NEW_INPUTS = ("guidance.", "second_time.")
"""Branches that a student has and its teacher has not: they begin at zero influence, so they train whole."""


def require_adapters() -> None:
    """Refuse to begin without peft."""
    require("peft", extra="lora")


def adapted(network: nn.Module, rank: int) -> nn.Module:
    """`network`, changed in place: adapters on every linear and convolutional layer, zero at the start, alone trainable beside
    new inputs."""
    peft = require("peft", extra="lora")
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith(NEW_INPUTS)
    ]
    # lora_alpha is the scale times the rank, so this scale is 1 (as that of LCM-LoRA, arXiv 2311.05556).
    config = peft.LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, bias="none", target_modules=layers)
    network = peft.inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(".lora_" in name or name.startswith(NEW_INPUTS))
    return network


@torch.no_grad()
def merge_into(plain: nn.Module, network: nn.Module) -> None:
    """Write what `network` has learned, adapters merged, into a network of the same kind without adapters."""
    layer_type = require("peft.tuners.lora", extra="lora").LoraLayer
    weights = dict(plain.named_parameters())
    for name, module in network.named_modules():
        if isinstance(module, layer_type):
            merged = module.base_layer.weight + module.get_delta_weight("default")
            weights[f"{name}.weight"].copy_(merged)
    for name, parameter in network.named_parameters():
        if name.startswith(NEW_INPUTS):
            weights[name].copy_(parameter)
