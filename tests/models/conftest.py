"""Fixtures of the model tests."""

from __future__ import annotations

import pytest
import torch

from distill_rt.models import NETWORKS


@pytest.fixture(params=sorted(NETWORKS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
