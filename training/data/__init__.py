"""Data sets: images in [-1, 1] with labels or captions, drawn by counter so that every step's batch can be drawn again."""

from distill_rt.training.data.base import Batch, Dataset, TensorDataset
from distill_rt.training.data.catalogue import DATASETS, load_dataset
from distill_rt.training.data.digits import digits
from distill_rt.training.data.grid25 import Grid25
from distill_rt.training.data.shapes import Shapes
from distill_rt.training.data.source import Source, open_source

__all__ = [
    "Batch",
    "Dataset",
    "TensorDataset",
    "Source",
    "DATASETS",
    "Grid25",
    "Shapes",
    "digits",
    "load_dataset",
    "open_source",
]
