"""Which numbers of steps a student offers, and at which times."""

from __future__ import annotations

MAX_STEPS = 1024
"""More than any teacher has: a larger number of steps is a typing error, and its table would fill the memory."""


def uniform_times(num_steps: int, *, start: float = 1.0) -> list[float]:
    """`num_steps` process times from `start`, evenly down to but without 0."""
    return [start * (1.0 - i / num_steps) for i in range(num_steps)]


def late_times(num_steps: int, power: float, *, start: float = 1.0) -> list[float]:
    """``start (1 - i / num_steps)^power``: a power above 1 leaves the times after the first nearer to 0."""
    return [start * t**power for t in uniform_times(num_steps)]


def powers_of_two(steps: int) -> list[int]:
    """1, 2, 4, ... up to `steps`, and `steps` itself."""
    return sorted({steps} | {2**k for k in range(steps.bit_length()) if 2**k <= steps})
