"""Optimisation profiles: the shapes that a plan is compiled for.

One point profile per bucket (a number of evaluations, and sizes where they are free), compiled for exactly these shapes, and
one range profile over them for what lies in between. Profile i of a plan is entry i of its list; a program looks up the
first that contains its shapes, so points win over the range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from distill_rt.core.spec import TensorSpec

Sizes = Mapping[str, int]
"""Symbol of a free dimension -> size, for example ``{"B": 4}`` or ``{"B": 4, "H": 64, "W": 96}``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """Lowest, best and highest size of every free dimension; a point if they are equal.

    Args:
        low, best, high: by symbol; low <= best <= high.
    """

    low: dict[str, int]
    best: dict[str, int]
    high: dict[str, int]

    def __post_init__(self) -> None:
        symbols = set(self.low)
        if set(self.best) != symbols or set(self.high) != symbols:
            raise ValueError("low, best and high of a profile must name the same dimensions")
        for symbol in symbols:
            if not 1 <= self.low[symbol] <= self.best[symbol] <= self.high[symbol]:
                sizes = f"{self.low[symbol]}, {self.best[symbol]}, {self.high[symbol]}"
                raise ValueError(f"a profile needs 1 <= low <= best <= high, got {sizes} for {symbol}")

    @classmethod
    def point(cls, sizes: Sizes) -> Profile:
        """Exactly these sizes."""
        return cls(low=dict(sizes), best=dict(sizes), high=dict(sizes))

    def contains(self, sizes: Sizes) -> bool:
        return set(sizes) == set(self.low) and all(
            self.low[symbol] <= size <= self.high[symbol] for symbol, size in sizes.items()
        )


def make_profiles(buckets: Sequence[Sizes]) -> tuple[Profile, ...]:
    """A point for each bucket in the given order, then one range from the smallest to the largest size of each dimension,
    tuned for the first bucket. A single bucket needs no range."""
    points = tuple(Profile.point(sizes) for sizes in buckets)
    if len(points) == 1:
        return points
    symbols = sorted(buckets[0])
    low = {symbol: min(sizes[symbol] for sizes in buckets) for symbol in symbols}
    high = {symbol: max(sizes[symbol] for sizes in buckets) for symbol in symbols}
    return (*points, Profile(low=low, best=dict(buckets[0]), high=high))


def profile_for(profiles: Sequence[Profile], sizes: Sizes) -> int | None:
    """Index of the first profile that contains `sizes`, None if none does."""
    return next((index for index, profile in enumerate(profiles) if profile.contains(sizes)), None)


def concrete_shape(tensor: TensorSpec, sizes: Sizes) -> tuple[int, ...]:
    """The shape of a tensor with its free dimensions bound."""
    return tuple(sizes[dim] if isinstance(dim, str) else dim for dim in tensor.shape)


def add_profile(builder: Any, config: Any, inputs: Sequence[TensorSpec], profile: Profile) -> int:
    """Add a profile to a build.

    Returns:
        Its index, or -1 if TensorRT refuses it (the log says why).
    """
    native = builder.create_optimization_profile()
    for tensor in inputs:
        shapes = (concrete_shape(tensor, sizes) for sizes in (profile.low, profile.best, profile.high))
        native.set_shape(tensor.name, *shapes)
    return int(config.add_optimization_profile(native))
