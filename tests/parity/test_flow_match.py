"""FlowMatchEulerDiscreteScheduler: the same samples from our table.

Left out: shift_terminal with one step (diffusers divides by zero) and stochastic sampling of inverted sigmas (its x0 is wrong
there); we refuse both. Per-token timesteps are not a table.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Compare = Callable[..., None]
FLOW: dict[str, Any] = {"_class_name": "FlowMatchEulerDiscreteScheduler"}

stochastics = pytest.mark.parametrize("stochastic", [False, True])


@pytest.mark.parametrize("shift", [1.0, 3.0])
@stochastics
@pytest.mark.parametrize("grid", [{}, {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}])
def test_shift_and_grids(
    compare: Compare, num_steps: int, shift: float, stochastic: bool, grid: dict[str, Any]
) -> None:
    compare(FLOW | grid | {"shift": shift, "stochastic_sampling": stochastic}, num_steps)


@pytest.mark.parametrize("time_shift_type", ["exponential", "linear"])
@stochastics
def test_dynamic_shift(compare: Compare, num_steps: int, time_shift_type: str, stochastic: bool) -> None:
    config = {"use_dynamic_shifting": True, "time_shift_type": time_shift_type, "stochastic_sampling": stochastic}
    compare(FLOW | config, num_steps, set_timesteps={"mu": 0.7})


@pytest.mark.parametrize("num", [2, 4, 7, 20, 50])
def test_shift_terminal(compare: Compare, num: int) -> None:
    compare(FLOW | {"shift": 3.0, "shift_terminal": 0.1}, num)


@stochastics
def test_explicit_sigmas(compare: Compare, num_steps: int, stochastic: bool) -> None:
    """As the pipelines of Flux and Qwen-Image pass them."""
    sigmas = np.linspace(1.0, 1.0 / num_steps, num_steps).tolist()
    compare(FLOW | {"shift": 3.0, "stochastic_sampling": stochastic}, num_steps, set_timesteps={"sigmas": sigmas})


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_inverted_sigmas(compare: Compare, num_steps: int, shift: float) -> None:
    compare(FLOW | {"shift": shift, "invert_sigmas": True}, num_steps)
