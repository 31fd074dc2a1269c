"""The shapes teacher: class-conditional (kind and colour), with classifier-free guidance, on 32x32 RGB scenes.

A UNet of 1.8 M parameters in v prediction on the cosine process, at a size that a GPU trains in minutes, a processor in hours.
With ``--data DIR`` it is the recipe for one's own images at 32x32, labelled by folder.
"""

from __future__ import annotations

from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import VPCosine
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.core.tokenizer import word_condition
from distill_rt.training.data import Shapes
from distill_rt.training.data.shapes import WORDS
from distill_rt.training.methods.denoising import Denoising
from distill_rt.training.recipes.base import Recipe

NUM_TOKENS, TEXT_WIDTH = 24, 64
"""L, the longest caption has 21 with its start and end; and D."""


def shapes_teacher() -> Recipe:
    """The label says kind and colour; number and places are the noise's."""
    classes = Shapes.num_classes
    condition = Condition(kind="label", num_classes=classes, null_label=classes)
    guidance = Guidance(mode="cfg", min=1.0, max=4.0, default=2.0)
    return _recipe("shapes-teacher", condition, guidance, num_labels=classes + 1)


def shapes_text_teacher() -> Recipe:
    """Captions say kind, colour, number and places. A text encoder of random weights, which stay as they are, gives every word
    and place an embedding of its own; the UNet learns to read them by cross-attention."""
    process, parameterization = VPCosine(), Parameterization(prediction=Prediction.V)
    network = NetworkSpec(
        kind="unet2d_condition",
        config={
            "sample_size": 32,
            "in_channels": 3,
            "out_channels": 3,
            "block_out_channels": [32, 64, 96],
            "layers_per_block": 1,
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "cross_attention_dim": TEXT_WIDTH,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        },
    )
    condition = word_condition(WORDS, num_tokens=NUM_TOKENS, width=TEXT_WIDTH)
    encoder = NetworkSpec(
        kind="clip_text",
        config={
            "vocab_size": condition.vocab_size,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 2 * TEXT_WIDTH,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "max_position_embeddings": NUM_TOKENS,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
        },
    )
    spec = StudentSpec(
        name="shapes-text-teacher",
        sample_shape=Shapes.sample_shape,
        process=process,
        parameterization=parameterization,
        condition=condition,
        guidance=Guidance(mode="cfg", min=1.0, max=8.0, default=3.0),
        plans={n: ddim(process, parameterization, [1.0 - i / n for i in range(n)]) for n in (4, 8, 16, 32, 64)},
        default_steps=32,
        networks=(network,),
        text_encoder=encoder,
    )
    return Recipe(spec=spec, dataset="shapes", method=Denoising(steps=6000, batch_size=64), words=WORDS)


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
