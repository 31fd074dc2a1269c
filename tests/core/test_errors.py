"""Errors carry what a user and a program need, wherever they are raised."""

from __future__ import annotations

import pickle

import pytest

from distill_rt.core.errors import ArtifactError, DistillError, GateError, ResourceError, TargetError, UsageError


@pytest.mark.parametrize("kind", [UsageError, ArtifactError, TargetError, ResourceError, GateError])
def test_an_error_crosses_processes(kind: type[DistillError]) -> None:
    """A pool of workers pickles what they raise, and breaks as a whole on what it cannot build again."""
    error = kind("expected 4, got 7", code="steps-not-in-contract", hint="use 4", details={"allowed": [1, 2, 4]})
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert copy.to_json() == error.to_json()
    assert str(copy) == str(error) == "expected 4, got 7 (use 4)"
