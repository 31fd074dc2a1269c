"""What the kernels should compute, in float64 on the device, with a bound on the error that float32 arithmetic may make.

The bound is the usual forward one (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1): OPERATIONS roundings
of float32 on the sum of the absolute values of all terms, then one rounding to the output's dtype. A kernel that computes in
half precision, drops a term or reads the wrong element is far outside of it.
"""

from __future__ import annotations

from typing import Any

OPERATIONS = 16
"""At least the float32 roundings on the way of any term: guidance 4, x0 3, threshold 1, the row 6, scaling 1."""
ROUNDOFF = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float32": 2.0**-150, "float16": 2.0**-25, "bfloat16": 2.0**-134}
"""Half of the smallest subnormal."""


class Interval:
    """A float64 tensor and the largest error that a float32 computation of it may have made so far."""

    def __init__(self, value: Any, terms: Any) -> None:
        self.value, self.terms = value, terms

    def error(self) -> Any:
        return OPERATIONS * ROUNDOFF["float32"] * self.terms

    def ratio(self, got: Any) -> float:
        """max |got - exact| / bound over all elements; infinity if any element is not finite. At most 1 is right."""
        import torch

        name = str(got.dtype).removeprefix("torch.")
        bound = self.error() + ROUNDOFF[name] * self.value.abs() + SMALLEST[name]
        ratio = (got.double() - self.value).abs() / bound
        return float("inf") if not bool(torch.isfinite(ratio).all()) else float(ratio.max())


def guided(F: Any, F_u: Any | None, w: Any | None, factor: Any | None = None) -> Interval:
    """F_u + w (F - F_u), times factor; F alone without F_u."""
    F = F.double()
    if F_u is None:
        return Interval(F, F.abs())
    assert w is not None
    F_u, w = F_u.double(), _per_image(w, F)
    value, terms = F_u + w * (F - F_u), F_u.abs() + w.abs() * (F.abs() + F_u.abs())
    if factor is None:
        return Interval(value, terms)
    factor = _per_image(factor, F)
    return Interval(value * factor, terms * factor.abs())


def table_row(
    row: Any, x: Any, F: Interval | None, *, history: tuple[Any, ...] = (), anchor: Any | None = None,
    z: Any | None = None, bound: Any | None = None,
) -> tuple[Interval, Interval | None]:  # fmt: skip
    """(next state, x0) of a `distill_rt.core.table.Row`, term by term as its docstring writes it.

    Args:
        bound: (B,) of a dynamic threshold, at least 1.
        z: the noise's own float32 values.
    """
    x = x.double()
    total, terms = row.r * x, abs(row.r) * x.abs()
    x0 = None
    if F is not None:
        value, size = row.p * x + row.q * F.value, abs(row.p) * x.abs() + abs(row.q) * F.terms
        if row.clip is not None:
            value = value.clamp(-row.clip, row.clip)  # moves two numbers no further apart
        if bound is not None:
            s = _per_image(bound, x)
            value, size = value.clamp(-s, s) / s, size / s + 1.0
        x0 = Interval(value, size)
        total, terms = total + row.g * value + row.f * F.value, terms + abs(row.g) * size + abs(row.f) * F.terms
    for weight, buffer in [*zip((row.h1, row.h2, row.h3), history, strict=False), (row.k, anchor), (row.n, z)]:
        if weight:
            assert buffer is not None
            total, terms = total + weight * buffer.double(), terms + abs(weight) * buffer.double().abs()
    return Interval(total, terms), x0


def scaled(state: Interval, factor: float) -> Interval:
    return Interval(factor * state.value, abs(factor) * state.terms)


def _per_image(values: Any, like: Any) -> Any:
    return values.double().reshape(-1, *[1] * (like.ndim - 1))
