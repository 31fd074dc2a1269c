"""The shapes teacher: class-conditional (kind and colour), with classifier-free guidance, on 32x32 RGB scenes.

A UNet of 1.8 M parameters in v prediction on the cosine process, at a size that a GPU trains in minutes, a processor in hours.
With ``--data DIR`` it is the recipe for one's own images at 32x32, labelled by folder.
"""

from __future__ import annotations

from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import VPCosine
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.training.data import Shapes
from distill_rt.training.methods.denoising import Denoising
from distill_rt.training.recipes.base import Recipe


def shapes_teacher() -> Recipe:
    """The label says kind and colour; number and places are the noise's."""
    classes = Shapes.num_classes
    condition = Condition(kind="label", num_classes=classes, null_label=classes)
    guidance = Guidance(mode="cfg", min=1.0, max=4.0, default=2.0)
    return _recipe("shapes-teacher", condition, guidance, num_labels=classes + 1)


def shapes_unlabelled_teacher() -> Recipe:
    """Nothing to ask for: also for folders of images without labels."""
    return _recipe("shapes-unlabelled-teacher", Condition(), Guidance(), num_labels=0)


def _recipe(name: str, condition: Condition, guidance: Guidance, *, num_labels: int) -> Recipe:
    process = VPCosine()
    parameterization = Parameterization(prediction=Prediction.V)
    network = NetworkSpec(
        kind="unet2d",
        config={
            "sample_size": 32,
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": [32, 64, 96],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
            "attention_head_dim": 32,
            "norm_num_groups": 8,
            "num_labels": num_labels,
        },
    )
    spec = StudentSpec(
        name=name,
        sample_shape=Shapes.sample_shape,
        process=process,
        parameterization=parameterization,
        condition=condition,
        guidance=guidance,
        plans={n: ddim(process, parameterization, [1.0 - i / n for i in range(n)]) for n in (4, 8, 16, 32, 64)},
        default_steps=32,
        networks=(network,),
    )
    return Recipe(spec=spec, dataset="shapes", method=Denoising(steps=6000, batch_size=64, peak_learning_rate=1e-3))
