"""Teachers of the 25-Gaussian grid: small enough for a training run in CI-sized minutes, with modes that can be counted.

A residual network in v prediction on the cosine process.
"""

from __future__ import annotations

from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import VPCosine
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.training.methods.denoising import Denoising
from distill_rt.training.recipes.base import Figure, Recipe


def grid25_teacher() -> Recipe:
    """Without labels: a student must find all 25 modes from noise."""
    figures = (
        Figure(method="bespoke", nfe=4, c2st=0.499, passed=True),
        Figure(method="progressive", nfe=4, c2st=0.509, passed=True),
        Figure(method="progressive", nfe=1, c2st=0.592, passed=True),
        Figure(method="consistency", nfe=4, c2st=0.513, passed=True),
        Figure(method="consistency", nfe=1, c2st=0.512, passed=True),
        Figure(method="consistency-ect", nfe=1, c2st=0.514, passed=True),
    )
    return _recipe("grid25-teacher", "grid25", Condition(), Guidance(), num_labels=0, figures=figures)


def grid25_labelled_teacher() -> Recipe:
    """The label is the column; guided, for methods that distil guidance."""
    return _recipe(
        "grid25-labelled-teacher",
        "grid25-labelled",
        Condition(kind="label", num_classes=5, null_label=5),
        Guidance(mode="cfg", min=1.0, max=3.0, default=2.0),
        num_labels=6,
        figures=(Figure(method="guidance", nfe=16, c2st=0.492, passed=True),),
    )


def _recipe(
    name: str, dataset: str, condition: Condition, guidance: Guidance, *, num_labels: int, figures: tuple[Figure, ...]
) -> Recipe:
    process = VPCosine()
    parameterization = Parameterization(prediction=Prediction.V)
    network = NetworkSpec(
        kind="mlp", config={"in_channels": 2, "width": 128, "num_blocks": 4, "num_labels": num_labels}
    )
    spec = StudentSpec(
        name=name,
        sample_shape=(2, 1, 1),
        process=process,
        parameterization=parameterization,
        condition=condition,
        guidance=guidance,
        plans={n: ddim(process, parameterization, [1.0 - i / n for i in range(n)]) for n in (4, 8, 16, 32, 64)},
        default_steps=32,
        networks=(network,),
    )
    method = Denoising(steps=6000, batch_size=256, ema_decay=0.998)
    return Recipe(spec=spec, dataset=dataset, method=method, minutes=2.5, figures=figures)
