"""The step table: every few-step sampler as rows of coefficients, and the ten lines that run one.

The state starts as ``init_scale * z``. Row i (design section 4)::

    F      = net[net_id](c_in * x, time, second_time)
    x0     = p * x + q * F                       then optional clip or dynamic threshold
    x_next = r*x + g*x0 + f*F + h1*x0_1 + h2*x0_2 + h3*x0_3 + k*anchor + n*z

``x0_j`` are the predictions of earlier rows (newest first), ``anchor`` is the input state of the last row flagged
``set_anchor``, ``z`` is unit noise of stream ``stream``. A row with ``net_id = -1`` calls no network and pushes no
prediction. Without clip, threshold, history and anchor a row folds to ``a*x + b*F + n*z``.

Coefficients are computed in float64 and stored as float32; `run_table` is the reference for every kernel, graph and backend.

Legend: B images, any trailing dimensions (usually C, H, W).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from distill_rt.core.errors import ArtifactError

Array = NDArray[Any]

NO_NETWORK = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row of a step table. Times are in the network's own units (for example 999.0, or 0.25*ln(sigma))."""

    time: float = 0.0
    second_time: float | None = None
    net_id: int = 0
    c_in: float = 1.0
    p: float = 0.0
    q: float = 1.0
    clip: float | None = None
    """Clamp x0 to [-clip, clip]."""
    threshold_ratio: float | None = None
    """Dynamic threshold (Saharia et al. 2022, section 2.3): the per-image quantile of |x0| that becomes the bound."""
    threshold_max: float = 1.0
    """The bound is limited to [1, threshold_max] and x0 is divided by it."""
    r: float = 0.0
    g: float = 1.0
    f: float = 0.0
    """Weight of the raw output beside x0: samplers that clip x0 but keep the unclipped noise direction need it."""
    h1: float = 0.0
    h2: float = 0.0
    h3: float = 0.0
    k: float = 0.0
    n: float = 0.0
    stream: int = 0
    """Noise stream of z; 0 is the initial noise, so rows that draw use 1, 2, ... (see `distill_rt.core.noise`)."""
    set_anchor: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"step table: {field.name} must be finite, got {value}")
        if self.net_id < NO_NETWORK:
            raise ValueError(f"step table: net_id must be -1 (no network) or an index, got {self.net_id}")
        if self.n != 0.0 and self.stream < 1:
            raise ValueError("step table: a row that draws noise needs a stream >= 1 (0 is the initial noise)")
        if self.clip is not None and self.clip <= 0:
            raise ValueError(f"step table: clip must be positive, got {self.clip}")
        if self.clip is not None and self.threshold_ratio is not None:
            raise ValueError("step table: a row clips or thresholds, not both")
        if self.threshold_ratio is not None and not 0 < self.threshold_ratio <= 1:
            raise ValueError(f"step table: threshold_ratio must be in (0, 1], got {self.threshold_ratio}")

    @property
    def calls_network(self) -> bool:
        return self.net_id != NO_NETWORK

    @property
    def is_affine(self) -> bool:
        """True if the row folds to ``a*x + b*F + n*z`` (what the kernels' fast path runs)."""
        return (
            self.clip is None and self.threshold_ratio is None and not (self.h1 or self.h2 or self.h3) and self.k == 0.0
        )

    def folded(self) -> tuple[float, float, float]:
        """(a, b, n) of an affine row. A row without a network has b = 0 and ignores x0."""
        if not self.is_affine:
            raise ValueError("step table: only a row without clip, threshold, history and anchor folds")
        if not self.calls_network:
            return self.r, 0.0, self.n
        return self.r + self.g * self.p, self.g * self.q + self.f, self.n


_ROW_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(Row)}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepTable:
    """A compiled sampler: `len(rows)` rows, run in order.

    Args:
        init_scale: the state starts as ``init_scale * z``, z unit noise of stream 0.
        rows: at least one row; the state after the last one is the sample.
    """

    init_scale: float = 1.0
    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("step table: needs at least one row")
        if not math.isfinite(self.init_scale):
            raise ValueError(f"step table: init_scale must be finite, got {self.init_scale}")

    @property
    def num_evaluations(self) -> int:
        """Network evaluations of one run (NFE)."""
        return sum(row.calls_network for row in self.rows)

    @property
    def is_stochastic(self) -> bool:
        return any(row.n != 0.0 for row in self.rows)

    @property
    def streams(self) -> tuple[int, ...]:
        """Noise streams that rows draw from, ascending; the initial noise is not among them."""
        return tuple(sorted({row.stream for row in self.rows if row.n}))

    @property
    def uses_second_time(self) -> bool:
        return any(row.second_time is not None for row in self.rows)

    @property
    def num_history(self) -> int:
        """How many earlier predictions a runtime must keep (0 to 3)."""
        return max((3 if row.h3 else 2 if row.h2 else 1 if row.h1 else 0) for row in self.rows)

    def as_float32(self) -> StepTable:
        """The table as it is stored: every coefficient rounded to float32."""
        return StepTable.from_json(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """JSON object; a row lists only what differs from the defaults, coefficients rounded to float32."""
        rows = []
        for row in self.rows:
            values = {name: getattr(row, name) for name in _ROW_DEFAULTS}
            rows.append({name: _round(value) for name, value in values.items() if value != _ROW_DEFAULTS[name]})
        return {"init_scale": _round(self.init_scale), "rows": rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> StepTable:
        """Inverse of `to_json`.

        Raises:
            ArtifactError: unknown keys, wrong types or values out of range.
        """
        try:
            unknown = set(data) - {"init_scale", "rows"}
            if unknown:
                raise ValueError(f"unknown keys {sorted(unknown)}")
            return cls(
                init_scale=_number("init_scale", data["init_scale"]), rows=tuple(_row(row) for row in data["rows"])
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(
                f"this is not a step table: {error}",
                code="table-invalid",
                hint="the file was edited or written by another version; export it again",
            ) from error


def _round(value: Any) -> Any:
    return float(np.float32(value)) if isinstance(value, float) else value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, got {value!r}")
    return float(value)


def _row(data: Mapping[str, Any]) -> Row:
    unknown = set(data) - set(_ROW_DEFAULTS)
    if unknown:
        raise ValueError(f"unknown row keys {sorted(unknown)}")
    values: dict[str, Any] = {}
    for name, value in data.items():
        if name in ("net_id", "stream"):
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name} must be an integer, got {value!r}")
            values[name] = value
        elif name == "set_anchor":
            if not isinstance(value, bool):
                raise ValueError(f"set_anchor must be true or false, got {value!r}")
            values[name] = value
        else:
            values[name] = _number(name, value)
    return Row(**values)


class Network(Protocol):
    """What a table calls: raw output F for the scaled state, guidance already applied."""

    def __call__(self, net_id: int, x_scaled: Array, time: float, second_time: float | None, /) -> Array: ...


def predict_x0(row: Row, x: Array, F: Array) -> Array:
    """x0 of one row: ``p*x + q*F``, then clip or dynamic threshold. Shapes (B, ...)."""
    x0: Array = x.dtype.type(row.p) * x + x.dtype.type(row.q) * F
    if row.clip is not None:
        x0 = np.clip(x0, -row.clip, row.clip)
    elif row.threshold_ratio is not None:
        flat = np.abs(x0.reshape(len(x0), -1))
        bound = np.clip(np.quantile(flat, row.threshold_ratio, axis=1), 1.0, row.threshold_max).astype(x0.dtype)
        bound = bound.reshape(-1, *([1] * (x0.ndim - 1)))
        x0 = np.clip(x0, -bound, bound) / bound
    return x0


def run_table(
    table: StepTable,
    z: Array,
    network: Network,
    noise: Callable[[int], Array] | None = None,
    *,
    dtype: DTypeLike = np.float64,
    on_row: Callable[[int, Array, Array | None], None] | None = None,
) -> Array:
    """Run a table: the reference interpreter.

    Args:
        table: the sampler.
        z: unit noise of stream 0, shape (B, ...).
        network: called as ``network(net_id, c_in * x, time, second_time)``.
        noise: ``noise(stream)`` gives unit noise shaped like z; needed by stochastic tables only.
        dtype: precision of the state; coefficients are cast to it.
        on_row: called as ``on_row(i, x_next, x0)`` after every row (previews, golden outputs).

    Returns:
        The sample, shape of z.
    """
    cast: Callable[[float], Any] = np.dtype(dtype).type
    x: Array = cast(table.init_scale) * np.asarray(z, dtype)
    anchor: Array = np.zeros_like(x)
    history: list[Array] = [np.zeros_like(x)] * 3
    for i, row in enumerate(table.rows):
        x0: Array | None = None
        x_in = x
        total = cast(row.r) * x
        if row.calls_network:
            F = np.asarray(network(row.net_id, cast(row.c_in) * x, row.time, row.second_time), dtype)
            if row.is_affine:
                a, b, _ = row.folded()
                total = cast(a) * x + cast(b) * F
                x0 = predict_x0(row, x, F) if on_row or table.num_history else None
            else:
                x0 = predict_x0(row, x, F)
                total = total + cast(row.g) * x0
                if row.f:
                    total = total + cast(row.f) * F
        for weight, past in zip((row.h1, row.h2, row.h3), history, strict=True):
            if weight:
                total = total + cast(weight) * past
        if row.k:
            total = total + cast(row.k) * anchor
        if row.n:
            if noise is None:
                raise ValueError("this table draws noise: pass noise=")
            total = total + cast(row.n) * np.asarray(noise(row.stream), dtype)
        x = total
        if x0 is not None:
            history = [x0, *history[:2]]
        if row.set_anchor:
            anchor = x_in
        if on_row is not None:
            on_row(i, x, x0)
    return x
