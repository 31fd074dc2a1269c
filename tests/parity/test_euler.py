"""EulerDiscreteScheduler, EulerAncestralDiscreteScheduler and HeunDiscreteScheduler: the same samples from our tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Compare = Callable[..., None]
EULER: dict[str, Any] = {"_class_name": "EulerDiscreteScheduler"}
ANCESTRAL: dict[str, Any] = {"_class_name": "EulerAncestralDiscreteScheduler"}
HEUN: dict[str, Any] = {"_class_name": "HeunDiscreteScheduler"}

spacings = pytest.mark.parametrize("timestep_spacing", ["leading", "trailing", "linspace"])
predictions = pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
sigma_grids = pytest.mark.parametrize("grid", ["use_karras_sigmas", "use_exponential_sigmas"])


@spacings
@predictions
@pytest.mark.parametrize("final_sigmas_type", ["zero", "sigma_min"])
def test_euler(
    compare: Compare, num_steps: int, timestep_spacing: str, prediction_type: str, final_sigmas_type: str
) -> None:
    config = {"timestep_spacing": timestep_spacing, "prediction_type": prediction_type, "steps_offset": 1}
    if timestep_spacing == "leading" and num_steps == 1:
        config["steps_offset"] = 0
    compare(EULER | config | {"final_sigmas_type": final_sigmas_type}, num_steps)


@sigma_grids
@predictions
@pytest.mark.parametrize("timestep_spacing", ["leading", "linspace"])
def test_euler_sigma_grids(
    compare: Compare, num_steps: int, grid: str, prediction_type: str, timestep_spacing: str
) -> None:
    compare(EULER | {grid: True, "prediction_type": prediction_type, "timestep_spacing": timestep_spacing}, num_steps)


@pytest.mark.parametrize("karras", [False, True])
@predictions
def test_euler_log_linear(compare: Compare, num_steps: int, karras: bool, prediction_type: str) -> None:
    config = {"interpolation_type": "log_linear", "use_karras_sigmas": karras, "prediction_type": prediction_type}
    compare(EULER | config, num_steps)


@predictions
def test_euler_continuous_time(compare: Compare, num_steps: int, prediction_type: str) -> None:
    """Stable Video Diffusion's configuration; only v prediction is given 0.25 * ln(sigma)."""
    config = {"timestep_type": "continuous", "use_karras_sigmas": True, "sigma_min": 0.002, "sigma_max": 700.0}
    compare(EULER | config | {"timestep_spacing": "leading", "prediction_type": prediction_type}, num_steps)


@predictions
@pytest.mark.parametrize("churn", [{"s_churn": 3.0, "s_tmin": 0.1, "s_tmax": 10.0, "s_noise": 1.003}, {"s_churn": 40}])
def test_euler_churn(compare: Compare, num_steps: int, prediction_type: str, churn: dict[str, float]) -> None:
    compare(EULER | {"prediction_type": prediction_type}, num_steps, step=churn)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@predictions
def test_euler_zero_terminal_snr(compare: Compare, num_steps: int, beta_schedule: str, prediction_type: str) -> None:
    config = {"beta_schedule": beta_schedule, "prediction_type": prediction_type, "timestep_spacing": "trailing"}
    compare(EULER | config | {"rescale_betas_zero_snr": True}, num_steps)


def test_euler_explicit_timesteps(compare: Compare) -> None:
    compare(EULER, 4, set_timesteps={"timesteps": [999, 749, 499, 249]})


@spacings
# Left out: prediction_type sample, which this scheduler does not implement; we refuse it.
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_euler_ancestral(
    compare: Compare, num_steps: int, timestep_spacing: str, prediction_type: str, zero_snr: bool
) -> None:
    config = {"timestep_spacing": timestep_spacing, "prediction_type": prediction_type}
    compare(ANCESTRAL | config | {"rescale_betas_zero_snr": zero_snr}, num_steps)


@spacings
@predictions
@pytest.mark.parametrize("clip", [False, True])
def test_heun(compare: Compare, num_steps: int, timestep_spacing: str, prediction_type: str, clip: bool) -> None:
    config = {"timestep_spacing": timestep_spacing, "prediction_type": prediction_type, "clip_sample": clip}
    compare(HEUN | config, num_steps)


@sigma_grids
@predictions
def test_heun_sigma_grids(compare: Compare, num_steps: int, grid: str, prediction_type: str) -> None:
    compare(HEUN | {grid: True, "prediction_type": prediction_type}, num_steps)
