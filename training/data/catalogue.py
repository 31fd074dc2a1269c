"""The data sets that need nothing but this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distill_rt.core.errors import UsageError
from distill_rt.training.data.base import Dataset
from distill_rt.training.data.digits import digits
from distill_rt.training.data.grid25 import Grid25
from distill_rt.training.data.shapes import Shapes

DATASETS: Mapping[str, Callable[[], Dataset]] = {
    "digits": digits,
    "grid25": Grid25,
    "grid25-labelled": lambda: Grid25(labelled=True),
    "shapes": Shapes,
}


def load_dataset(name: str) -> Dataset:
    """A data set by name."""
    if name not in DATASETS:
        raise UsageError(
            f"data set {name!r} is unknown", code="dataset-unknown", hint=f"one of: {', '.join(sorted(DATASETS))}"
        )
    return DATASETS[name]()
