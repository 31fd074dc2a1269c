"""Published configurations: what is understood, what is refused and how (equality of samples is in tests/parity)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import Prediction
from distill_rt.core.process import VPLinear
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.scheduler_config import SCHEDULERS, table_from_scheduler_config
from distill_rt.core.table import StepTable

NO_OPTIONS = {"FlowMatchEulerDiscreteScheduler": {"shift": 3.0}}

# As published: stabilityai/stable-diffusion-xl-base-1.0, scheduler/scheduler_config.json
SDXL = {
    "_class_name": "EulerDiscreteScheduler",
    "_diffusers_version": "0.19.0.dev0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "sample_max_value": 1.0,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "trained_betas": None,
    "use_karras_sigmas": False,
}


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
@pytest.mark.parametrize("num_steps", [1, 4, 25])
def test_every_class_makes_tables_that_can_be_stored(name: str, num_steps: int) -> None:
    table = table_from_scheduler_config({"_class_name": name} | NO_OPTIONS.get(name, {}), num_steps)
    assert table.num_evaluations == (2 * num_steps - 1 if name == "HeunDiscreteScheduler" else num_steps)
    stored = StepTable.from_json(table.to_json())
    assert stored == table.as_float32()
    for row, other in zip(table.rows, stored.rows, strict=True):
        assert abs(other.g - row.g) <= 1e-7 * abs(row.g)


def test_a_published_configuration_with_keys_of_other_classes() -> None:
    table = table_from_scheduler_config(SDXL, 4)
    assert [row.time for row in table.rows] == [751.0, 501.0, 251.0, 1.0]
    assert table.init_scale == 1.0  # sqrt(sigma^2 + 1) in the scheduler's x / alpha


def test_students_of_progressive_distillation_run_as_ddim() -> None:
    """SDXL-Lightning: Euler with trailing spacing is DDIM on the same levels."""
    process = VPLinear()
    table = table_from_scheduler_config(SDXL | {"timestep_spacing": "trailing"}, 4)
    times = tuple(float(process.t_from_model_time(i)) for i in (999.0, 749.0, 499.0, 249.0))
    general = ddim(process, Prediction.EPS, times)
    for row, other in zip(table.rows, general.rows, strict=True):
        assert row.time == pytest.approx(other.time)
        np.testing.assert_allclose(row.folded(), other.folded(), rtol=1e-5, atol=1e-7)


def test_lcm_and_dmd2_grids() -> None:
    lcm = table_from_scheduler_config({"_class_name": "LCMScheduler"}, 4)
    assert [row.time for row in lcm.rows] == [999.0, 759.0, 499.0, 259.0]
    dmd2 = table_from_scheduler_config({"_class_name": "LCMScheduler"}, 4, timesteps=[999, 749, 499, 249])
    assert [row.time for row in dmd2.rows] == [999.0, 749.0, 499.0, 249.0]
    assert [row.n > 0 for row in dmd2.rows] == [True, True, True, False]


@pytest.mark.parametrize("config", [{}, {"_class_name": "PNDMScheduler"}, {"_class_name": None}, [], None])
def test_unsupported_class_names_the_supported(config: Any) -> None:
    with pytest.raises(UsageError) as caught:
        table_from_scheduler_config(config, 4)
    assert caught.value.code == "scheduler-unsupported"
    assert all(name in caught.value.message for name in SCHEDULERS)


@pytest.mark.parametrize("num_steps", [0, -3, 2.0, True, "4", None])
def test_step_count_must_be_a_positive_integer(num_steps: Any) -> None:
    with pytest.raises(UsageError) as caught:
        table_from_scheduler_config(SDXL, num_steps)
    assert caught.value.code == "steps-out-of-range"


@pytest.mark.parametrize("name", sorted(SCHEDULERS))
def test_no_key_and_no_option_is_silently_ignored(name: str) -> None:
    config = {"_class_name": name}
    with pytest.raises(UsageError) as caught:
        table_from_scheduler_config(config | {"use_magic": True}, 4)
    assert caught.value.code == "option-unknown"
    assert "use_magic" in caught.value.message
    with pytest.raises(UsageError) as caught:
        table_from_scheduler_config(config, 4, strength=0.5)
    assert caught.value.code == "option-unknown"
    assert "strength" in caught.value.message


@pytest.mark.parametrize(
    ("name", "option", "value", "supported"),
    [
        ("DDIMScheduler", "beta_schedule", "laplace", "scaled_linear"),
        ("DDIMScheduler", "prediction_type", "flow_prediction", "v_prediction"),
        ("DDIMScheduler", "timestep_spacing", "log", "trailing"),
        ("DDPMScheduler", "variance_type", "learned_range", "fixed_small"),
        ("EulerDiscreteScheduler", "use_beta_sigmas", True, "use_karras_sigmas"),
        ("EulerAncestralDiscreteScheduler", "prediction_type", "sample", "epsilon"),
        ("HeunDiscreteScheduler", "beta_schedule", "exp", "linear"),
        ("DPMSolverMultistepScheduler", "algorithm_type", "sde-dpmsolver++", "dpmsolver++"),
        ("DPMSolverMultistepScheduler", "solver_order", 3, "2"),
        ("DPMSolverMultistepScheduler", "variance_type", "learned", "None"),
        ("FlowMatchEulerDiscreteScheduler", "use_beta_sigmas", True, "use_exponential_sigmas"),
        ("EDMEulerScheduler", "sigma_schedule", "cosine", "karras"),
    ],
)
def test_unsupported_values_name_the_supported(name: str, option: str, value: Any, supported: str) -> None:
    with pytest.raises(UsageError) as caught:
        table_from_scheduler_config({"_class_name": name, option: value}, 4)
    assert caught.value.code == "option-unsupported"
    assert option in caught.value.message
    assert supported in caught.value.message


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({"_class_name": "DDIMScheduler", "beta_start": "0.1"}, {}),
        ({"_class_name": "DDIMScheduler", "num_train_timesteps": 10.5}, {}),
        ({"_class_name": "DDIMScheduler", "clip_sample": "yes"}, {}),
        ({"_class_name": "DDIMScheduler", "trained_betas": [0.1, 0.2]}, {}),
        ({"_class_name": "DDIMScheduler", "trained_betas": "0.1"}, {}),
        ({"_class_name": "DDIMScheduler"}, {"eta": 2.0}),
        ({"_class_name": "DDIMScheduler"}, {"eta": "much"}),
        ({"_class_name": "TCDScheduler"}, {"timesteps": [999.5, 3, 2, 1]}),
        ({"_class_name": "LCMScheduler"}, {"timesteps": [999, 499]}),
        ({"_class_name": "LCMScheduler"}, {"timesteps": 999}),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"sigmas": [0.2, 0.4, 0.6, 0.8]}),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, {"mu": 0.5}),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "invert_sigmas": True, "stochastic_sampling": True}, {}),
        ({"_class_name": "DPMSolverMultistepScheduler", "prediction_type": "flow_prediction"}, {}),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_flow_sigmas": True, "use_karras_sigmas": True}, {}),
        ({"_class_name": "EulerDiscreteScheduler"}, {"s_churn": -1.0}),
        ({"_class_name": "EDMEulerScheduler", "sigma_min": 0.0}, {}),
        ({"_class_name": "EDMEulerScheduler", "rho": -7.0}, {}),
        ({"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 0}, {}),
        ({"_class_name": "CMStochasticIterativeScheduler", "num_train_timesteps": 1}, {}),
        ({"_class_name": "DDIMScheduler", "beta_end": 3.0}, {}),
        ({"_class_name": "DDIMScheduler", "clip_sample_range": 0.0}, {}),
        ({"_class_name": "LCMScheduler", "original_inference_steps": 0}, {}),
        ({"_class_name": "LCMScheduler", "timestep_scaling": float("nan")}, {}),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0.0}, {}),
        ({"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "sigma_min": -1.0}, {}),
    ],
)
def test_wrong_values_are_usage_errors(config: dict[str, Any], options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        table_from_scheduler_config(config, 4, **options)
