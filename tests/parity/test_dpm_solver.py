"""DPMSolverMultistepScheduler, first and second order: the same samples from our table.

Left out, and refused by us: third order, the SDE variants and dpmsolver without ++, beta sigmas, flow_prediction without flow
sigmas (diffusers then mixes sigma / alpha with flow times).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Compare = Callable[..., None]
DPM: dict[str, Any] = {"_class_name": "DPMSolverMultistepScheduler"}
STABLE_DIFFUSION = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}

predictions = pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
solvers = pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
finals = pytest.mark.parametrize("final_sigmas_type", ["zero", "sigma_min"])


@pytest.mark.parametrize("timestep_spacing", ["leading", "trailing", "linspace"])
@predictions
@solvers
@finals
def test_spacing_prediction_solver(
    compare: Compare,
    num_steps: int,
    timestep_spacing: str,
    prediction_type: str,
    solver_type: str,
    final_sigmas_type: str,
) -> None:
    config = {"timestep_spacing": timestep_spacing, "prediction_type": prediction_type, "solver_type": solver_type}
    compare(DPM | STABLE_DIFFUSION | config | {"final_sigmas_type": final_sigmas_type}, num_steps)


@pytest.mark.parametrize("euler_at_final", [False, True])
@pytest.mark.parametrize("lower_order_final", [False, True])
@finals
@pytest.mark.parametrize("solver_order", [1, 2])
def test_last_step(
    compare: Compare,
    num_steps: int,
    euler_at_final: bool,
    lower_order_final: bool,
    final_sigmas_type: str,
    solver_order: int,
) -> None:
    last = {"euler_at_final": euler_at_final, "lower_order_final": lower_order_final}
    compare(DPM | last | {"final_sigmas_type": final_sigmas_type, "solver_order": solver_order}, num_steps)


@pytest.mark.parametrize("grid", ["use_karras_sigmas", "use_exponential_sigmas", "use_lu_lambdas"])
@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@finals
def test_sigma_grids(compare: Compare, num_steps: int, grid: str, beta_schedule: str, final_sigmas_type: str) -> None:
    compare(DPM | {grid: True, "beta_schedule": beta_schedule, "final_sigmas_type": final_sigmas_type}, num_steps)


@solvers
@pytest.mark.parametrize("prediction_type", ["flow_prediction", "epsilon", "sample"])
def test_flow_sigmas(compare: Compare, num_steps: int, solver_type: str, prediction_type: str) -> None:
    config = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": prediction_type}
    compare(DPM | config | {"solver_type": solver_type}, num_steps)


def test_dynamic_flow_shift(compare: Compare, num_steps: int) -> None:
    config = {"use_flow_sigmas": True, "use_dynamic_shifting": True, "prediction_type": "flow_prediction"}
    compare(DPM | config, num_steps, set_timesteps={"mu": 0.8})


@pytest.mark.parametrize(
    "config",
    [
        {"thresholding": True, "sample_max_value": 1.5},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"lambda_min_clipped": -5.1, "beta_schedule": "squaredcos_cap_v2"},
        {"lambda_min_clipped": -2.0, "timestep_spacing": "trailing"},
        {"steps_offset": 1, "timestep_spacing": "leading"},
        {"solver_type": "bh2"},
    ],
)
def test_other_options(compare: Compare, num_steps: int, config: dict[str, Any]) -> None:
    compare(DPM | config, num_steps)
