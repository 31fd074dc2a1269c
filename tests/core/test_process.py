"""Noise processes: closed forms, round trips, three kinds of number, JSON."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.core.process import (
    EDM,
    NoiseProcess,
    RectifiedFlow,
    Trig,
    VPCosine,
    VPLinear,
    convert,
    process_from_json,
)

PROCESSES = [
    VPLinear(),
    VPLinear(rescale_betas_zero_snr=True),
    VPLinear(beta_schedule="squaredcos_cap_v2", num_train_timesteps=100),
    VPLinear(num_train_timesteps=3, trained_betas=(0.1, 0.2, 0.3)),
    VPCosine(),
    VPCosine(log_snr_min=None, log_snr_max=None, time_scale=1.0),
    EDM(),
    EDM(sigma_min=0.01, sigma_max=10.0, rho=5.0, time_scale=1000.0),
    RectifiedFlow(),
    RectifiedFlow(time_scale=1.0),
    Trig(),
    Trig(sigma_data=1.0),
]
UNLIMITED = [
    VPLinear(rescale_betas_zero_snr=True),
    VPCosine(log_snr_min=None, log_snr_max=None),
    RectifiedFlow(),
    Trig(),
]
T = np.linspace(0.02, 0.98, 33)

every = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)


@every
def test_inverses(process: NoiseProcess) -> None:
    np.testing.assert_allclose(process.t_from_sigma_ratio(process.sigma_ratio(T)), T, rtol=1e-12)
    np.testing.assert_allclose(process.t_from_log_snr(process.log_snr(T)), T, rtol=1e-11)
    np.testing.assert_allclose(process.t_from_model_time(process.model_time(T)), T, rtol=1e-12)


@every
def test_noise_grows(process: NoiseProcess) -> None:
    t = np.linspace(0.0, 1.0, 201)
    assert np.all(np.diff(process.sigma_ratio(t[:-1])) > 0)
    assert np.all(np.diff(process.log_snr(t[1:-1])) < 0)
    assert process.sigma_ratio(1.0) > process.sigma_ratio(0.995)


@every
def test_derivatives_are_derivatives(process: NoiseProcess) -> None:
    # away from the grid of a discrete process, where the slope jumps
    t = (np.arange(5, 90, 7) + 0.5) / 100 if isinstance(process, VPLinear) else T
    h = 1e-6
    for value, slope in ((process.alpha, process.d_alpha), (process.sigma, process.d_sigma)):
        steps = process.num_train_timesteps if isinstance(process, VPLinear) else 1
        points = (np.floor(t * steps) + 0.5) / steps if steps > 1 else t
        numeric = (value(points + h) - value(points - h)) / (2 * h)
        np.testing.assert_allclose(numeric, slope(points), rtol=1e-6, atol=1e-8)


@every
def test_float_numpy_and_torch_agree(process: NoiseProcess) -> None:
    torch = pytest.importorskip("torch")
    t = torch.from_numpy(T)
    for name in ("alpha", "sigma", "d_alpha", "d_sigma", "sigma_ratio", "log_snr", "model_time"):
        method = getattr(process, name)
        expected = method(T)
        assert isinstance(float(method(0.5)), float)
        np.testing.assert_allclose([float(method(float(value))) for value in T], expected, rtol=1e-13)
        result = method(t)
        assert isinstance(result, torch.Tensor)
        assert result.dtype == torch.float64
        np.testing.assert_allclose(result.numpy(), expected, rtol=1e-12)
        assert method(t.float()).dtype == torch.float32
    ratio = process.sigma_ratio(t)
    np.testing.assert_allclose(process.t_from_sigma_ratio(ratio).numpy(), T, rtol=1e-10)
    np.testing.assert_allclose(process.t_from_log_snr(process.log_snr(t)).numpy(), T, rtol=1e-10)


@every
def test_torch_gradients_are_the_derivatives(process: NoiseProcess) -> None:
    torch = pytest.importorskip("torch")
    t = torch.from_numpy(T).requires_grad_()
    (slope,) = torch.autograd.grad((process.sigma(t) + 3.0 * process.alpha(t)).sum(), t)
    expected = process.d_sigma(T) + 3.0 * process.d_alpha(T)
    if isinstance(process, VPLinear):
        grid = np.abs(T * process.num_train_timesteps % 1) < 1e-6  # either side's slope is right on the grid
        slope, expected = slope[torch.from_numpy(~grid)], expected[~grid]
    np.testing.assert_allclose(slope.numpy(), expected, rtol=1e-9, atol=1e-12)


@every
def test_add_noise_broadcasts_per_image(process: NoiseProcess) -> None:
    rng = np.random.default_rng(0)
    x0, eps = rng.standard_normal((3, 2, 4, 4)), rng.standard_normal((3, 2, 4, 4))
    t = np.array([0.1, 0.5, 0.9])
    x = process.add_noise(x0, eps, t)
    for i, value in enumerate(t):
        np.testing.assert_allclose(x[i], process.alpha(value) * x0[i] + process.sigma(value) * eps[i], rtol=1e-14)


@every
def test_json_round_trip(process: NoiseProcess) -> None:
    data = json.loads(json.dumps(process.to_json()))
    assert process_from_json(data) == process
    assert NoiseProcess.from_json(data) == process


@pytest.mark.parametrize("target", UNLIMITED, ids=lambda p: p.kind)
@every
def test_change_of_process_round_trip(process: NoiseProcess, target: NoiseProcess) -> None:
    scale, there = convert(T, process, target)
    back_scale, back = convert(there, target, process)
    np.testing.assert_allclose(back, T, rtol=1e-9)
    np.testing.assert_allclose(scale * back_scale, 1.0, rtol=1e-10)
    # the state is the same mixture of x0 and eps
    np.testing.assert_allclose(scale * process.alpha(T), target.alpha(there), rtol=1e-9)
    np.testing.assert_allclose(scale * process.sigma(T), target.sigma(there), rtol=1e-9)


@pytest.mark.parametrize("source", UNLIMITED, ids=lambda p: p.kind)
@pytest.mark.parametrize("target", UNLIMITED, ids=lambda p: p.kind)
def test_change_of_process_at_both_ends(source: NoiseProcess, target: NoiseProcess) -> None:
    for t in (0.0, 1.0):
        scale, there = convert(t, source, target)
        assert there == pytest.approx(t, abs=1e-12)
        assert scale * source.sigma(t) == pytest.approx(target.sigma(t), abs=1e-12)
        assert scale * source.alpha(t) == pytest.approx(target.alpha(t), abs=1e-12)


def test_variance_preserving() -> None:
    for process in (VPLinear(), VPLinear(rescale_betas_zero_snr=True), VPCosine()):
        np.testing.assert_allclose(process.alpha(T) ** 2 + process.sigma(T) ** 2, 1.0, rtol=1e-14)
        assert process.init_scale(0.7) == 1.0


def test_vp_linear_is_exact_on_its_grid() -> None:
    process = VPLinear()
    timesteps = np.arange(1000)
    t = process.t_from_model_time(timesteps)
    np.testing.assert_allclose(process.alpha(t) ** 2, process.alphas_bar(), rtol=1e-12)
    np.testing.assert_allclose(process.sigma(t) ** 2, 1 - process.alphas_bar(), rtol=1e-9)
    assert process.alpha(0.0) == 1.0
    assert process.sigma(0.0) == 0.0
    assert process.model_time(1.0) == 999.0
    # Stable Diffusion's last level, as published
    assert process.alphas_bar()[-1] == pytest.approx(0.0047, abs=5e-5)


def test_zero_terminal_snr_is_exactly_zero() -> None:
    process = VPLinear(rescale_betas_zero_snr=True)
    assert process.alpha(1.0) == 0.0
    assert process.log_snr(1.0) == -np.inf
    assert process.alphas_bar()[0] == pytest.approx(VPLinear().alphas_bar()[0], rel=1e-4)


def test_vp_cosine_limits_the_log_snr() -> None:
    process = VPCosine(log_snr_min=-20.0, log_snr_max=20.0)
    assert process.log_snr(0.0) == pytest.approx(20.0)
    assert process.log_snr(1.0) == pytest.approx(-20.0)
    unlimited = VPCosine(log_snr_min=None, log_snr_max=None)
    np.testing.assert_allclose(unlimited.alpha(T), np.cos(np.pi / 2 * T), rtol=1e-13)
    assert unlimited.alpha(1.0) == 0.0
    assert unlimited.model_time(0.25) == pytest.approx(250.0)


def test_edm_closed_forms() -> None:
    process = EDM()
    assert process.sigma(0.0) == pytest.approx(0.002)
    assert process.sigma(1.0) == pytest.approx(80.0)
    assert process.model_time(1.0) == pytest.approx(np.log(80.0) / 4)
    grid = process.sigma(1 - np.arange(18) / 17)  # Karras et al. 2022, equation 5
    i = np.arange(18) / 17
    np.testing.assert_allclose(grid, (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7, rtol=1e-12)
    assert process.init_scale(1.0) == pytest.approx(80.0)


def test_trig_closed_forms() -> None:
    process = Trig(sigma_data=0.5)
    np.testing.assert_allclose(process.alpha(T), np.cos(np.pi / 2 * T), rtol=1e-13)
    np.testing.assert_allclose(process.sigma(T), 0.5 * np.sin(np.pi / 2 * T), rtol=1e-13)
    # SANA-Sprint starts at atan(80 / sigma_data)
    assert process.t_from_sigma_ratio(80.0) * np.pi / 2 == pytest.approx(np.arctan(160.0))


@pytest.mark.parametrize(
    "data",
    [
        {},
        [],
        {"kind": "vp"},
        {"kind": "edm", "sigma": 3.0},
        {"kind": "edm", "sigma_min": "small"},
        {"kind": "edm", "sigma_min": True},
        {"kind": "edm", "sigma_min": float("nan")},
        {"kind": "edm", "sigma_min": 90.0},
        {"kind": "vp_linear", "num_train_timesteps": 10.5},
        {"kind": "vp_linear", "num_train_timesteps": 0},
        {"kind": "vp_linear", "rescale_betas_zero_snr": 1},
        {"kind": "vp_linear", "beta_schedule": "sideways"},
        {"kind": "vp_linear", "trained_betas": [0.1, 0.2]},
        {"kind": "vp_linear", "trained_betas": 0.1},
        {"kind": "vp_cosine", "log_snr_min": 5.0, "log_snr_max": -5.0},
        {"kind": "rectified_flow", "time_scale": 0},
    ],
)
def test_bad_json_is_an_artifact_error(data: Any) -> None:
    with pytest.raises(ArtifactError) as caught:
        process_from_json(data)
    assert caught.value.code == "process-invalid"


def test_unknown_beta_schedule_names_the_known() -> None:
    from distill_rt.core.betas import discrete_betas

    with pytest.raises(UsageError, match="scaled_linear"):
        discrete_betas("laplace", num_train_timesteps=10, beta_start=0.1, beta_end=0.2)
