"""Fixtures of these tests."""

from __future__ import annotations

import pytest
from toy_method import CALLS


@pytest.fixture(autouse=True)
def _fresh_calls():
    CALLS.clear()
