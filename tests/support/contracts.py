"""Small contracts, one per kind of input that a student may take."""

from __future__ import annotations

import dataclasses
from typing import Any

from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import VPCosine
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.core.table import Row, StepTable

LABELLED = Condition(kind="label", num_classes=10, null_label=10)
EMBEDDED = Guidance(mode="embedded", min=1.0, max=4.0, default=2.0)
CFG = Guidance(mode="cfg", min=1.0, max=4.0, default=2.0)


def table(num_steps: int, *, second_time: bool = False) -> StepTable:
    """Rows with every kind of column, so that a codec that loses one is found out."""
    rows = [
        Row(
            time=900.0 - 100.0 * i,
            second_time=800.0 - 100.0 * i if second_time else None,
            p=0.5,
            q=-0.25,
            r=0.75,
            g=0.125,
            n=0.5 if i else 0.0,
            stream=i,
            clip=1.0 if i == 1 else None,
            set_anchor=i == 0,
        )
        for i in range(num_steps)
    ]
    return StepTable(init_scale=1.5, rows=tuple(rows))


def contract(**changes: Any) -> StudentSpec:
    """A guided, labelled student of 1, 2 or 4 steps; `changes` replace fields."""
    spec = StudentSpec(
        name="toy",
        sample_shape=(2, 1, 1),
        process=VPCosine(),
        parameterization=Parameterization(prediction=Prediction.V),
        condition=LABELLED,
        guidance=EMBEDDED,
        plans={n: table(n) for n in (1, 2, 4)},
        default_steps=4,
        networks=(NetworkSpec(kind="mlp", config={"in_channels": 2, "num_labels": 11, "guidance": True}),),
        provenance={"data": "grid25", "seed": 0, "nested": {"list": [1, 2.5, None, True, "x"]}},
    )
    return dataclasses.replace(spec, **changes)


def unconditional(**changes: Any) -> StudentSpec:
    """A student that takes neither label nor guidance."""
    network = NetworkSpec(kind="mlp", config={"in_channels": 2})
    return contract(**{"condition": Condition(), "guidance": Guidance(), "networks": (network,), **changes})
