"""The step table: what a row means, what is refused, how it is stored."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distill_rt.core.errors import ArtifactError
from distill_rt.core.table import NO_NETWORK, Row, StepTable, predict_x0, run_table

Array = NDArray[np.float64]
Z = np.random.default_rng(0).standard_normal((2, 3, 4, 4))


def noise(stream: int) -> Array:
    return np.random.default_rng(100 + stream).standard_normal(Z.shape)


def network(net_id: int, x: Array, time: float, second_time: float | None) -> Array:
    return np.tanh(x) * (1 + net_id) + 0.01 * time - 0.1 * (second_time or 0.0)


FULL = StepTable(
    init_scale=2.0,
    rows=(
        Row(time=900.0, c_in=0.5, p=1.3, q=-0.7, r=0.4, g=0.6, n=0.2, stream=1, set_anchor=True),
        Row(net_id=NO_NETWORK, r=0.9, g=0.0, n=0.3, stream=2),
        Row(time=500.0, second_time=200.0, net_id=1, clip=0.8, p=1.1, q=-0.3, r=0.3, g=0.7, f=-0.2, h1=0.15),
        Row(time=200.0, threshold_ratio=0.9, threshold_max=1.2, p=1.0, q=-2.0, r=0.2, g=0.8, h1=0.1, h2=-0.05),
        Row(time=50.0, p=0.9, q=0.1, r=0.25, g=0.5, h1=0.1, h2=0.2, h3=0.3, k=0.05),
    ),
)


def test_rows_do_what_the_table_says() -> None:
    """A plain loop over the formula of the module, written out for these five rows."""
    x = start = 2.0 * Z
    x0_a = 1.3 * x - 0.7 * network(0, 0.5 * x, 900.0, None)
    x = 0.4 * x + 0.6 * x0_a + 0.2 * noise(1)
    x = 0.9 * x + 0.3 * noise(2)
    F = network(1, x, 500.0, 200.0)
    x0_b = np.clip(1.1 * x - 0.3 * F, -0.8, 0.8)
    x = 0.3 * x + 0.7 * x0_b - 0.2 * F + 0.15 * x0_a
    x0_c = x - 2.0 * network(0, x, 200.0, None)
    bound = np.clip(np.quantile(np.abs(x0_c).reshape(2, -1), 0.9, axis=1), 1.0, 1.2)[:, None, None, None]
    assert 1.0 < bound.min() <= bound.max() <= 1.2
    x0_c = np.clip(x0_c, -bound, bound) / bound
    x = 0.2 * x + 0.8 * x0_c + 0.1 * x0_b - 0.05 * x0_a
    x0_d = 0.9 * x + 0.1 * network(0, x, 50.0, None)
    x = 0.25 * x + 0.5 * x0_d + 0.1 * x0_c + 0.2 * x0_b + 0.3 * x0_a + 0.05 * start
    np.testing.assert_allclose(run_table(FULL, Z, network, noise), x, rtol=1e-12)


def test_what_a_table_knows_of_itself() -> None:
    assert FULL.num_evaluations == 4
    assert FULL.num_history == 3
    assert FULL.is_stochastic
    assert FULL.uses_second_time
    plain = StepTable(rows=(Row(time=1.0),))
    assert (plain.num_evaluations, plain.num_history, plain.is_stochastic, plain.uses_second_time) == (
        1,
        0,
        False,
        False,
    )


def test_fold_equals_two_stages() -> None:
    row = Row(time=3.0, c_in=0.7, p=1.7, q=-0.4, r=0.3, g=0.9, f=0.2, n=0.5, stream=1)
    a, b, n = row.folded()
    F = network(0, 0.7 * Z, 3.0, None)
    two_stages = row.r * Z + row.g * predict_x0(row, Z, F) + row.f * F + row.n * noise(1)
    np.testing.assert_allclose(a * Z + b * F + n * noise(1), two_stages, rtol=1e-13)
    np.testing.assert_allclose(run_table(StepTable(rows=(row,)), Z, network, noise), two_stages, rtol=1e-13)


def test_a_row_without_network_folds_to_the_state_alone() -> None:
    assert Row(net_id=NO_NETWORK, r=0.5, p=3.0, g=1.0).folded() == (0.5, 0.0, 0.0)


@pytest.mark.parametrize("change", [{"clip": 1.0}, {"threshold_ratio": 0.9}, {"h1": 0.1}, {"h2": 0.1}, {"k": 0.1}])
def test_other_rows_do_not_fold(change: dict[str, float]) -> None:
    row = Row(**change)  # type: ignore[arg-type]
    assert not row.is_affine
    with pytest.raises(ValueError, match="folds"):
        row.folded()


def test_on_row_sees_every_state_and_prediction() -> None:
    seen: list[tuple[int, bool]] = []
    states: list[Array] = []

    def on_row(i: int, x: Array, x0: Array | None) -> None:
        seen.append((i, x0 is not None))
        states.append(x)

    result = run_table(FULL, Z, network, noise, on_row=on_row)
    assert seen == [(0, True), (1, False), (2, True), (3, True), (4, True)]
    np.testing.assert_array_equal(states[-1], result)
    np.testing.assert_array_equal(run_table(FULL, Z, network, noise), result)


def test_noise_must_be_given_where_it_is_drawn() -> None:
    with pytest.raises(ValueError, match="noise"):
        run_table(FULL, Z, network)


def test_float32_state() -> None:
    result = run_table(FULL, Z, network, noise, dtype=np.float32)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, run_table(FULL, Z, network, noise), rtol=2e-5, atol=1e-5)


def test_json_round_trip_stores_float32() -> None:
    data = json.loads(json.dumps(FULL.to_json()))
    stored = StepTable.from_json(data)
    assert stored == FULL.as_float32()
    assert stored != FULL
    assert stored.as_float32() == stored
    assert stored.rows[0].q == float(np.float32(-0.7))
    assert data["rows"][1] == {
        "net_id": -1,
        "r": float(np.float32(0.9)),
        "g": 0.0,
        "n": float(np.float32(0.3)),
        "stream": 2,
    }


@pytest.mark.parametrize(
    "values",
    [
        {"p": float("nan")},
        {"time": float("inf")},
        {"second_time": float("nan")},
        {"net_id": -2},
        {"n": 0.1},  # stream 0 is the initial noise
        {"clip": 0.0},
        {"clip": -1.0},
        {"threshold_ratio": 0.0},
        {"threshold_ratio": 1.5},
        {"clip": 1.0, "threshold_ratio": 0.9},
    ],
)
def test_bad_rows_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="step table"):
        Row(**values)


def test_bad_tables_are_refused() -> None:
    with pytest.raises(ValueError, match="row"):
        StepTable(rows=())
    with pytest.raises(ValueError, match="init_scale"):
        StepTable(init_scale=float("nan"), rows=(Row(),))


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"rows": [{}]},
        {"init_scale": 1.0},
        {"init_scale": 1.0, "rows": []},
        {"init_scale": "1", "rows": [{}]},
        {"init_scale": True, "rows": [{}]},
        {"init_scale": 1.0, "rows": [{}], "columns": 3},
        {"init_scale": 1.0, "rows": [{"alpha": 1.0}]},
        {"init_scale": 1.0, "rows": [{"p": "1"}]},
        {"init_scale": 1.0, "rows": [{"p": True}]},
        {"init_scale": 1.0, "rows": [{"p": float("nan")}]},
        {"init_scale": 1.0, "rows": [{"net_id": 1.0}]},
        {"init_scale": 1.0, "rows": [{"stream": True}]},
        {"init_scale": 1.0, "rows": [{"set_anchor": 1}]},
        {"init_scale": 1.0, "rows": [{"n": 1.0}]},
        {"init_scale": 1.0, "rows": 3},
        {"init_scale": 1.0, "rows": [3]},
    ],
)
def test_bad_json_is_an_artifact_error(data: Any) -> None:
    with pytest.raises(ArtifactError) as caught:
        StepTable.from_json(data)
    assert caught.value.code == "table-invalid"
