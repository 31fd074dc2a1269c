"""The reference networks of the speed benchmarks: published shapes with seeded random weights, which cost what trained ones do.

`c10` is the CIFAR-10 DDPM (35.7 M parameters, 32x32, the configuration of google/ddpm-cifar10-32: one attention head) as a
student of 4 DDIM steps.

    python benchmarks/reference_networks.py c10 DIRECTORY    # writes the student directory
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import VPLinear
from distill_rt.core.scheduler_config import table_from_scheduler_config
from distill_rt.core.spec import NetworkSpec, StudentSpec
from distill_rt.models import build_network, save_student

SEED = 0
C10_STEPS = 4
C10_UNET: Mapping[str, Any] = {
    "sample_size": 32,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": [128, 256, 256, 256],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
C10_SCHEDULER: Mapping[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "clip_sample": False,
    "timestep_spacing": "trailing",
    "prediction_type": "v_prediction",
}
"""The noise schedule of Ho et al. 2020 (arXiv 2006.11239, section 4). Trailing steps start at pure noise, as students do. v and
not noise: the x0 of a random network that predicts noise is some hundred times too large, and its PSNR says nothing."""


def c10_spec() -> StudentSpec:
    """The contract: 4 steps, no condition, no guidance."""
    table = table_from_scheduler_config(C10_SCHEDULER, C10_STEPS).as_float32()
    return StudentSpec(
        name="c10",
        sample_shape=(3, 32, 32),
        process=VPLinear(beta_start=1e-4, beta_end=0.02, beta_schedule="linear"),
        parameterization=Parameterization(prediction=Prediction.V),
        plans={C10_STEPS: table},
        default_steps=C10_STEPS,
        networks=(NetworkSpec(kind="unet2d", config=dict(C10_UNET)),),
        provenance={"method": "random weights", "seed": SEED},
    )


def c10_network() -> nn.Module:
    """Our network class with its seeded weights."""
    torch.manual_seed(SEED)
    return build_network(c10_spec().networks[0]).eval().requires_grad_(False)


def c10_diffusers() -> nn.Module:
    """The same weights in the class that a diffusers pipeline runs, in PyTorch's default memory format."""
    from diffusers import UNet2DModel

    network = c10_network()
    unet = UNet2DModel(**C10_UNET)
    unet.load_state_dict(network.backbone.state_dict())  # type: ignore[union-attr]
    return unet.eval().requires_grad_(False)


def write_c10(path: Path) -> Path:
    """The student directory, written once: an existing one is taken as it is."""
    if not path.exists():
        save_student(path, c10_spec(), [c10_network()])
    return path


WRITERS = {"c10": write_c10}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=WRITERS)
    parser.add_argument("directory", type=Path)
    args = parser.parse_args()
    WRITERS[args.name](args.directory)


if __name__ == "__main__":
    main()
