"""Tiny networks of every kind, and contracts that fit them."""

from __future__ import annotations

from typing import Any

import torch
from contracts import CFG, EMBEDDED, LABELLED, contract, table
from torch import nn

from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.models import build_network

CONFIGS: dict[str, dict[str, Any]] = {
    "unet2d": {
        "sample_size": 8,
        "in_channels": 2,
        "out_channels": 2,
        "block_out_channels": [8, 8],
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
    },
    "dit": {
        "sample_size": 8,
        "patch_size": 4,
        "in_channels": 2,
        "out_channels": 2,
        "num_layers": 1,
        "num_attention_heads": 1,
        "attention_head_dim": 32,
        "norm_num_groups": 1,
    },
    "mlp": {"in_channels": 2, "width": 16, "num_blocks": 1},
}
SHAPES = {"unet2d": (2, 8, 8), "dit": (2, 8, 8), "mlp": (2, 1, 1)}


def make_contract(
    kind: str, *, label: bool = True, guidance: bool = False, second_time: bool = False, **changes: Any
) -> StudentSpec:
    config = {
        **CONFIGS[kind],
        "num_labels": 11 if label else 0,
        "guidance": guidance,
        "second_time": second_time,
    }
    fields = {
        "sample_shape": SHAPES[kind],
        "condition": LABELLED if label else Condition(),
        "guidance": EMBEDDED if guidance else CFG if label else Guidance(),
        "plans": {n: table(n, second_time=second_time) for n in (1, 4)},
        "networks": (NetworkSpec(kind=kind, config=config),),
    }
    return contract(**{**fields, **changes})


def make_network(spec: StudentSpec, *, seed: int = 0) -> nn.Module:
    """With every weight drawn: layers that start at zero would hide what flows through them."""
    torch.manual_seed(seed)
    network = build_network(spec.networks[0])
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    return network.eval()


def make_inputs(spec: StudentSpec, num_images: int = 3) -> list[torch.Tensor]:
    """One value per input of the contract, in its order."""
    generator = torch.Generator().manual_seed(1)
    values = {
        "sample": torch.randn(num_images, *spec.sample_shape, generator=generator),
        "time": torch.linspace(100.0, 900.0, num_images),
        "second_time": torch.linspace(50.0, 500.0, num_images),
        "label": torch.arange(num_images) % 10,
        "guidance": torch.linspace(1.0, 4.0, num_images),
    }
    return [values[tensor.name] for tensor in spec.network_inputs()]
