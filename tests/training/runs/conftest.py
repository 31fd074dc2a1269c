"""Teachers of the runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from short_runs import TEACHER_SETTINGS, TEACHERS

from distill_rt.training.run import train


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hardly trained ones: right in everything but quality."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("teachers")
    for name, steps in TEACHERS.items():
        train(f"{name}-teacher", root / name, settings={"steps": steps, **TEACHER_SETTINGS})
    return {name: root / name for name in TEACHERS}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "student"
