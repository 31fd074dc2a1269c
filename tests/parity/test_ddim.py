"""DDIMScheduler: the same samples from our table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Compare = Callable[..., None]
DDIM: dict[str, Any] = {"_class_name": "DDIMScheduler", "clip_sample": False}
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

spacings = pytest.mark.parametrize("timestep_spacing", ["leading", "trailing", "linspace"])
predictions = pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
etas = pytest.mark.parametrize("eta", [0.0, 1.0])


@spacings
@predictions
@etas
def test_spacing_prediction_eta(
    compare: Compare, num_steps: int, timestep_spacing: str, prediction_type: str, eta: float
) -> None:
    config = DDIM | STABLE_DIFFUSION | {"timestep_spacing": timestep_spacing, "prediction_type": prediction_type}
    compare(config, num_steps, step={"eta": eta})


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("set_alpha_to_one", [True, False])
@pytest.mark.parametrize("steps_offset", [0, 1])
def test_schedule_and_ends(
    compare: Compare, num_steps: int, beta_schedule: str, set_alpha_to_one: bool, steps_offset: int
) -> None:
    ends = {"set_alpha_to_one": set_alpha_to_one, "steps_offset": steps_offset}
    compare(DDIM | {"beta_schedule": beta_schedule} | ends, num_steps, step={"eta": 0.5})


@predictions
@etas
@pytest.mark.parametrize("rederive", [False, True])
@pytest.mark.parametrize(
    "limit",
    [
        {"clip_sample": True},
        {"clip_sample": True, "clip_sample_range": 0.7},
        {"thresholding": True, "sample_max_value": 1.5},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.8, "sample_max_value": 1.0, "clip_sample": True},
    ],
)
def test_clipping_keeps_or_rederives_the_noise(
    compare: Compare, prediction_type: str, eta: float, rederive: bool, limit: dict[str, Any]
) -> None:
    config = DDIM | limit | {"prediction_type": prediction_type}
    compare(config, 7, step={"eta": eta, "use_clipped_model_output": rederive})


# Left out: epsilon (diffusers divides by zero, we refuse) and squaredcos_cap_v2 with eta 1 (diffusers takes the root of a
# negative rounding error at 7 steps).
@spacings
@pytest.mark.parametrize("prediction_type", ["sample", "v_prediction"])
@pytest.mark.parametrize("eta", [0.0, 0.9])
def test_zero_terminal_snr(
    compare: Compare, num_steps: int, timestep_spacing: str, prediction_type: str, eta: float
) -> None:
    config = DDIM | STABLE_DIFFUSION | {"timestep_spacing": timestep_spacing, "prediction_type": prediction_type}
    compare(config | {"rescale_betas_zero_snr": True}, num_steps, step={"eta": eta})


def test_explicit_betas(compare: Compare) -> None:
    betas = [0.01 + 0.002 * i for i in range(30)]
    compare(DDIM | {"trained_betas": betas, "num_train_timesteps": 30}, 6)


def test_configuration_of_another_class(compare: Compare) -> None:
    """Stable Diffusion 1.5 ships PNDM's configuration; pipelines build other schedulers from it."""
    compare(DDIM | STABLE_DIFFUSION | {"skip_prk_steps": True, "set_alpha_to_one": False, "steps_offset": 1}, 4)
