"""What a recipe returns."""

from __future__ import annotations

from dataclasses import dataclass

from distill_rt.core.spec import StudentSpec
from distill_rt.training.methods.base import Method


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Args: spec: contract of the teacher; dataset: name for `load_dataset`; method: how it is trained."""

    spec: StudentSpec
    dataset: str
    method: Method
