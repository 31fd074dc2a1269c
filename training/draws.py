"""Random numbers of training: a pure function of (seed, step, sample, purpose).

Nothing is carried from one step to the next, so a run that was killed and resumed draws what the uninterrupted run would
have drawn, and a sample's noise does not depend on its place among processes. Built on the runtime's own Philox noise.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_rt.core.noise import EXTRA_STREAM_BASE, uniform_bits
from distill_rt.kernels import unit_noise
from distill_rt.training.device import CPU


class Purpose(IntEnum):
    """What a number is drawn for; each purpose is a stream of its own."""

    INDEX = 0
    CONDITION_DROP = 1
    TIME = 2
    SECOND_TIME = 3
    NOISE = 4
    GUIDANCE = 5
    DATA = 6
    MATCHING_NOISE = 7
    SCORE_NOISE = 8
    SCORE_TIME = 9
    STEP = 10
    NEARBY = 11


_BELOW_ONE = np.float32(1.0 - 2.0**-24)


class Draws:
    """The random numbers of one training step, one independent sequence per sample.

    Args:
        seed: of the run, 0 to 2**64 - 1.
        step: of the run, counted from 0.
        num_samples: batch size B.
        first_sample: index of the first sample in the global batch (for several processes).
        device: where the numbers are handed out; they are the same everywhere.
    """

    def __init__(
        self, seed: int, step: int, num_samples: int, *, first_sample: int = 0, device: torch.device = CPU
    ) -> None:
        samples = np.arange(first_sample, first_sample + num_samples, dtype=np.uint64)
        self.seeds: NDArray[np.uint64] = _mix(_mix(_mix(np.array([seed], np.uint64)) + np.uint64(step)) + samples)
        """One per sample, (B,): for the noise of the runtime's own tables, whose streams these draws never use."""
        self.num_samples = num_samples
        self.device = device
        self._of = (seed, step, first_sample)

    @property
    def first_sample(self) -> int:
        """Place of the first of these samples in the whole batch."""
        return self._of[2]

    def following(self) -> Draws:
        """The draws of the next step, for whoever prepares it."""
        seed, step, first_sample = self._of
        return Draws(seed, step + 1, self.num_samples, first_sample=first_sample, device=self.device)

    def on(self, device: torch.device) -> Draws:
        """The same numbers, handed out on a device."""
        seed, step, first_sample = self._of
        return Draws(seed, step, self.num_samples, first_sample=first_sample, device=device)

    def normal(self, shape: tuple[int, ...], purpose: Purpose = Purpose.NOISE) -> Tensor:
        """Unit normal numbers, shape (B, *shape)."""
        return self.table_noise(shape, EXTRA_STREAM_BASE + purpose)

    def table_noise(self, shape: tuple[int, ...], stream: int = 0) -> Tensor:
        """The noise of the runtime's tables for `seeds`, shape (B, *shape): of the start (stream 0) or of a row (row + 1)."""
        return torch.from_numpy(unit_noise(self.seeds, shape, stream)).to(self.device)

    def uniform(self, purpose: Purpose) -> Tensor:
        """Numbers in (0, 1), multiples of 2**-24 plus 2**-25, shape (B,)."""
        bits = self._bits(purpose)
        unit = ((bits >> np.uint32(8)).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-24)
        return torch.from_numpy(np.minimum(unit, _BELOW_ONE)).to(self.device)  # the last of them would round to 1

    def integers(self, low: int, high: int, purpose: Purpose) -> Tensor:
        """Integers low <= i < high, shape (B,), int64 (high - low below 2**31)."""
        bits = self._bits(purpose).astype(np.uint64)
        offset = (bits * np.uint64(high - low)) >> np.uint64(32)
        return torch.from_numpy(offset.astype(np.int64) + low).to(self.device)

    def _bits(self, purpose: Purpose) -> NDArray[np.uint32]:
        return uniform_bits(self.seeds, 1, EXTRA_STREAM_BASE + purpose)[:, 0]


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's finaliser (Steele, Lea & Flood 2014): a bijection that spreads every bit over all 64."""
    with np.errstate(over="ignore"):
        value = value + np.uint64(0x9E3779B97F4A7C15)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))
