"""Fixtures of the training tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from closed_forms import MixtureTeacher, plain_spec

from distill_rt.models import Student


@pytest.fixture(scope="session")
def mixture_student() -> Student:
    """The exact teacher of grid25 as a loaded student."""
    return Student(spec=plain_spec(2), networks=(MixtureTeacher(),), digest="0" * 64, path=Path("mixture"))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Two tests side by side, each with all cores, are slower than each with one."""
    torch.set_num_threads(1)
