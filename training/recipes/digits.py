"""The digits teacher: class-conditional, with classifier-free guidance, on 8x8 handwritten digits.

A UNet of 1.1 M parameters in v prediction on the cosine process; benchmarks/results/demo.json says how long training it took.
"""

from __future__ import annotations

from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import VPCosine
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.training.methods.denoising import Denoising
from distill_rt.training.recipes.base import Figure, Recipe


def digits_teacher() -> Recipe:
    process = VPCosine()
    parameterization = Parameterization(prediction=Prediction.V)
    network = NetworkSpec(
        kind="unet2d",
        config={
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "block_out_channels": [64, 64],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "DownBlock2D"],
            "up_block_types": ["UpBlock2D", "UpBlock2D"],
            "attention_head_dim": 32,
            "norm_num_groups": 8,
            "num_labels": 11,
        },
    )
    spec = StudentSpec(
        name="digits-teacher",
        sample_shape=(1, 8, 8),
        process=process,
        parameterization=parameterization,
        condition=Condition(kind="label", num_classes=10, null_label=10),
        guidance=Guidance(mode="cfg", min=1.0, max=4.0, default=2.0),
        plans={n: ddim(process, parameterization, [1.0 - i / n for i in range(n)]) for n in (4, 8, 16, 32, 64)},
        default_steps=32,
        networks=(network,),
    )
    figures = (
        Figure(method="bespoke", nfe=4, c2st=0.512, passed=True),
        Figure(method="progressive", nfe=4, c2st=0.508, passed=True),
        Figure(method="consistency", nfe=1, c2st=0.594, passed=True),
        Figure(method="consistency", nfe=4, c2st=0.614, passed=True),
        Figure(method="guidance", nfe=16, c2st=0.497, passed=False),
    )
    return Recipe(spec=spec, dataset="digits", method=Denoising(steps=1500), minutes=2.2, figures=figures)
