"""LCMScheduler and TCDScheduler: the same samples from our tables.

Left out: zero terminal SNR with epsilon prediction, where diffusers divides by zero and we refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Compare = Callable[..., None]
LCM: dict[str, Any] = {"_class_name": "LCMScheduler"}
TCD: dict[str, Any] = {"_class_name": "TCDScheduler"}
DMD2 = {"timesteps": [999, 749, 499, 249]}

predictions = pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
gammas = pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])


@predictions
@pytest.mark.parametrize("timestep_scaling", [10.0, 0.01])
@pytest.mark.parametrize(
    "limit", [{}, {"clip_sample": True, "clip_sample_range": 0.8}, {"thresholding": True, "sample_max_value": 1.5}]
)
def test_lcm(
    compare: Compare, num_steps: int, prediction_type: str, timestep_scaling: float, limit: dict[str, Any]
) -> None:
    compare(LCM | limit | {"prediction_type": prediction_type, "timestep_scaling": timestep_scaling}, num_steps)


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
def test_lcm_zero_terminal_snr(compare: Compare, num_steps: int, prediction_type: str) -> None:
    compare(LCM | {"prediction_type": prediction_type, "rescale_betas_zero_snr": True}, num_steps)


@pytest.mark.parametrize("arguments", [DMD2, {"original_inference_steps": 100}])
def test_lcm_grids(compare: Compare, arguments: dict[str, Any]) -> None:
    compare(LCM, 4, set_timesteps=arguments)


@predictions
@gammas
def test_tcd(compare: Compare, num_steps: int, prediction_type: str, gamma: float) -> None:
    compare(TCD | {"prediction_type": prediction_type}, num_steps, step={"eta": gamma})


@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@gammas
def test_tcd_zero_terminal_snr(compare: Compare, num_steps: int, prediction_type: str, gamma: float) -> None:
    config = {"prediction_type": prediction_type, "rescale_betas_zero_snr": True}
    compare(TCD | config, num_steps, step={"eta": gamma})


@pytest.mark.parametrize("arguments", [DMD2, {"original_inference_steps": 50}])
@gammas
def test_tcd_grids(compare: Compare, arguments: dict[str, Any], gamma: float) -> None:
    compare(TCD, 4, set_timesteps=arguments, step={"eta": gamma})


def test_tcd_never_clips(compare: Compare) -> None:
    compare(TCD | {"clip_sample": True, "clip_sample_range": 0.1, "thresholding": True}, 4)
