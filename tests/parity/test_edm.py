"""CMStochasticIterativeScheduler and EDMEulerScheduler: the same samples from our tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Compare = Callable[..., None]
CONSISTENCY: dict[str, Any] = {"_class_name": "CMStochasticIterativeScheduler"}
EDM: dict[str, Any] = {"_class_name": "EDMEulerScheduler"}


@pytest.mark.parametrize("num", [1, 2, 4, 7, 20, 40])  # 40 is the whole training grid
@pytest.mark.parametrize("clip_denoised", [True, False])
@pytest.mark.parametrize("s_noise", [1.0, 1.1])
def test_consistency(compare: Compare, num: int, clip_denoised: bool, s_noise: float) -> None:
    compare(CONSISTENCY | {"clip_denoised": clip_denoised, "s_noise": s_noise}, num)


@pytest.mark.parametrize("clip_denoised", [True, False])
def test_consistency_explicit_timesteps(compare: Compare, clip_denoised: bool) -> None:
    compare(CONSISTENCY | {"clip_denoised": clip_denoised}, 2, set_timesteps={"timesteps": [22, 0]})


def test_consistency_other_grid(compare: Compare) -> None:
    grid = {"num_train_timesteps": 18, "sigma_min": 0.01, "sigma_max": 10.0, "sigma_data": 1.0, "rho": 5.0}
    compare(CONSISTENCY | grid, 4)


predictions = pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
schedules = pytest.mark.parametrize("sigma_schedule", ["karras", "exponential"])


@predictions
@schedules
@pytest.mark.parametrize("final_sigmas_type", ["zero", "sigma_min"])
def test_edm_euler(
    compare: Compare, num_steps: int, prediction_type: str, sigma_schedule: str, final_sigmas_type: str
) -> None:
    config = {"prediction_type": prediction_type, "sigma_schedule": sigma_schedule}
    compare(EDM | config | {"final_sigmas_type": final_sigmas_type}, num_steps)


@predictions
@schedules
def test_edm_euler_churn(compare: Compare, num_steps: int, prediction_type: str, sigma_schedule: str) -> None:
    churn = {"s_churn": 5.0, "s_tmin": 0.05, "s_tmax": 50.0, "s_noise": 1.003}
    compare(EDM | {"prediction_type": prediction_type, "sigma_schedule": sigma_schedule}, num_steps, step=churn)
