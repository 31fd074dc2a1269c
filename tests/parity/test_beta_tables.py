"""Discrete schedules equal diffusers' bit for bit, so that levels near clean data are those a checkpoint was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distill_rt.core.process import VPLinear

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")


@pytest.mark.parametrize(
    ("num_train_timesteps", "zero_snr"),
    # one timestep cannot both keep its level and be at zero: 0/0 in diffusers too
    [(1, False), (37, False), (37, True), (100, False), (100, True), (1000, False), (1000, True)],
)
@pytest.mark.parametrize(
    ("beta_schedule", "beta_start", "beta_end"),
    [("linear", 0.0001, 0.02), ("scaled_linear", 0.00085, 0.012), ("squaredcos_cap_v2", 0.0001, 0.02)],
)
def test_alphas_bar(
    monkeypatch: pytest.MonkeyPatch,
    num_train_timesteps: int,
    beta_schedule: str,
    beta_start: float,
    beta_end: float,
    zero_snr: bool,
) -> None:
    # torch's own float32 square root is off by one unit in the last place on some processors (see conftest)
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda self: torch.as_tensor(np.sqrt(self.numpy())))
    options: dict[str, Any] = {
        "beta_schedule": beta_schedule,
        "beta_start": beta_start,
        "beta_end": beta_end,
        "num_train_timesteps": num_train_timesteps,
        "rescale_betas_zero_snr": zero_snr,
    }
    expected = diffusers.DDIMScheduler(**options).alphas_cumprod.numpy()
    np.testing.assert_array_equal(VPLinear(**options).alphas_bar(), expected.astype(np.float64))
