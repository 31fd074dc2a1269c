"""What diffusers refuses, or answers with nan, is a UsageError of ours and never a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Compare = Callable[..., None]

ZERO_SNR = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}

CASES: list[tuple[str, dict[str, Any], int, dict[str, Any]]] = [
    ("DDIMScheduler", {**ZERO_SNR, "clip_sample": False}, 4, {}),
    ("DDIMScheduler", {"timestep_spacing": "sideways"}, 4, {}),
    ("DDIMScheduler", {"beta_schedule": "cosine"}, 4, {}),
    ("DDIMScheduler", {"prediction_type": "flow"}, 4, {}),
    ("DDIMScheduler", {}, 1001, {}),
    ("DDIMScheduler", {"steps_offset": 1}, 1000, {}),
    ("DDPMScheduler", {**ZERO_SNR, "clip_sample": False}, 4, {}),
    ("DDPMScheduler", {"variance_type": "fixed_large_log"}, 4, {}),
    ("DDPMScheduler", {}, 3, {"set_timesteps": {"timesteps": [100, 200, 300]}}),
    ("LCMScheduler", {"rescale_betas_zero_snr": True}, 4, {}),
    ("LCMScheduler", {}, 51, {}),
    ("LCMScheduler", {"original_inference_steps": 1001}, 4, {}),
    ("LCMScheduler", {}, 2, {"set_timesteps": {"timesteps": [1000, 10]}}),
    ("TCDScheduler", {}, 51, {}),
    ("TCDScheduler", {}, 4, {"step": {"eta": 1.5}}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True, "use_exponential_sigmas": True}, 4, {}),
    ("EulerDiscreteScheduler", {"final_sigmas_type": "middle"}, 4, {}),
    ("EulerDiscreteScheduler", {"interpolation_type": "cubic"}, 4, {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, 2, {"set_timesteps": {"timesteps": [500, 100]}}),
    ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, 4, {}),
    ("DPMSolverMultistepScheduler", {"solver_type": "euler"}, 4, {}),
    ("DPMSolverMultistepScheduler", {}, 4, {"set_timesteps": {"mu": 0.5}}),
    ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True}, 4, {}),
    ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}, 1, {}),
    ("FlowMatchEulerDiscreteScheduler", {}, 3, {"set_timesteps": {"sigmas": [1.0, 0.5]}}),
    ("CMStochasticIterativeScheduler", {}, 41, {}),
    ("EDMEulerScheduler", {"sigma_schedule": "linear"}, 4, {}),
    ("EDMEulerScheduler", {"prediction_type": "sample"}, 4, {}),
]


@pytest.mark.parametrize(("name", "config", "num", "arguments"), CASES)
def test_refused_by_both(
    refused_by_both: Compare, name: str, config: dict[str, Any], num: int, arguments: dict[str, Any]
) -> None:
    refused_by_both({"_class_name": name} | config, num, **arguments)
