"""DDPMScheduler: the same samples from our table.

Left out: variance_type fixed_large_log (diffusers takes the root of a logarithm: not a number) and learned variances (they
need a second network output); we refuse both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Compare = Callable[..., None]
DDPM: dict[str, Any] = {"_class_name": "DDPMScheduler", "clip_sample": False}

predictions = pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])


@pytest.mark.parametrize("timestep_spacing", ["leading", "trailing", "linspace"])
@predictions
@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_small_log", "fixed_large"])
def test_spacing_prediction_variance(
    compare: Compare, num_steps: int, timestep_spacing: str, prediction_type: str, variance_type: str
) -> None:
    config = {"timestep_spacing": timestep_spacing, "prediction_type": prediction_type, "variance_type": variance_type}
    compare(DDPM | config, num_steps)


@predictions
@pytest.mark.parametrize(
    "limit", [{"clip_sample": True, "clip_sample_range": 0.9}, {"thresholding": True, "sample_max_value": 2.0}]
)
def test_clipping(compare: Compare, num_steps: int, prediction_type: str, limit: dict[str, Any]) -> None:
    compare(DDPM | limit | {"prediction_type": prediction_type}, num_steps)


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_zero_terminal_snr(compare: Compare, num_steps: int, beta_schedule: str) -> None:
    config = {"beta_schedule": beta_schedule, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    compare(DDPM | config | {"rescale_betas_zero_snr": True}, num_steps)


@predictions
def test_explicit_timesteps(compare: Compare, prediction_type: str) -> None:
    compare(DDPM | {"prediction_type": prediction_type}, 3, set_timesteps={"timesteps": [900, 300, 5]})
