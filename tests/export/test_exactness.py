"""`same_bits` sees one wrong bit at one position, and looks at every position."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distill_rt.export.exactness import same_bits

Array = NDArray[Any]


class FakeProgram:
    """Doubles its input; optionally flips the last bit of one position."""

    def __init__(self, batch: int, wrong: int | None = None) -> None:
        self.inputs: Mapping[str, Array] = {"sample": np.zeros((batch, 3), np.float32)}
        self.outputs: Mapping[str, Array] = {"prediction": np.zeros((batch, 3), np.float32)}
        self._wrong = wrong
        self.num_runs = 0

    def run(self) -> None:
        self.num_runs += 1
        output = self.outputs["prediction"]
        output[:] = 2 * self.inputs["sample"]
        if self._wrong is not None:
            output[self._wrong, 1] = np.nextafter(output[self._wrong, 1], np.float32(np.inf))


INPUTS = {"sample": np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)}


@pytest.mark.parametrize("num_evaluations", [1, 2])
def test_equal_programs(num_evaluations: int) -> None:
    reference = FakeProgram(num_evaluations)
    assert same_bits(reference, FakeProgram(8 * num_evaluations), INPUTS)
    assert reference.num_runs == 8


@pytest.mark.parametrize("wrong", range(8))
@pytest.mark.parametrize("num_evaluations", [1, 2])
def test_one_wrong_bit_anywhere(wrong: int, num_evaluations: int) -> None:
    assert not same_bits(FakeProgram(num_evaluations), FakeProgram(8, wrong), INPUTS)


def test_cfg_compares_an_evaluation_with_its_own_kind() -> None:
    """Position 1 of the reference is the conditional evaluation: wrong there, and right only where that is compared."""
    assert not same_bits(FakeProgram(2, wrong=1), FakeProgram(8), INPUTS)


def test_signed_zeros_are_different_bits() -> None:
    class Negating(FakeProgram):
        def run(self) -> None:
            self.outputs["prediction"][:] = -0.0

    zeros = {"sample": np.zeros((1, 3), np.float32)}
    assert not same_bits(FakeProgram(1), Negating(2), zeros)
