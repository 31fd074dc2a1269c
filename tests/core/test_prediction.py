"""Predictions and preconditionings: consistent with each other, with their papers, and invertible."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.core.prediction import (
    ConsistencyBoundary,
    EDMPreconditioning,
    LCMBoundary,
    Parameterization,
    Preconditioning,
    Prediction,
    TrigPreconditioning,
    ddim_jump,
    inverse_ddim_target,
    to_eps,
    to_flow,
    to_v,
    x0_coefficients,
)
from distill_rt.core.process import EDM, NoiseLevel, NoiseProcess, RectifiedFlow, Trig, VPCosine, VPLinear

PROCESSES = [VPLinear(), VPCosine(), EDM(sigma_max=10.0), RectifiedFlow(), Trig()]
PARAMETERIZATIONS = [
    *(Parameterization(prediction=prediction) for prediction in Prediction),
    *(
        Parameterization(prediction=Prediction.X0, preconditioning=preconditioning)
        for preconditioning in (EDMPreconditioning(), ConsistencyBoundary(), TrigPreconditioning())
    ),
    Parameterization(prediction=Prediction.EPS, preconditioning=LCMBoundary()),
]
T_B = np.array([0.11, 0.52, 0.93])

every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)
every_network = pytest.mark.parametrize(
    "network", PARAMETERIZATIONS, ids=lambda n: f"{n.prediction}-{n.preconditioning.kind}"
)


def images(seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(seed).standard_normal((3, 2, 4, 4))


@every_process
def test_predictions_agree(process: NoiseProcess) -> None:
    x0, eps, level = images(0), images(1), process.at(T_B)
    x = process.add_noise(x0, eps, T_B)
    np.testing.assert_allclose(to_eps(x, x0, level), eps, rtol=1e-9, atol=1e-12)
    outputs = {
        Prediction.X0: x0,
        Prediction.EPS: eps,
        Prediction.V: to_v(x, x0, level),
        Prediction.FLOW: to_flow(x, x0, level),
    }
    for prediction, F in outputs.items():
        recovered = Parameterization(prediction=prediction).to_x0(x, F, level)
        np.testing.assert_allclose(recovered, x0, rtol=1e-8, atol=1e-10)


def test_flow_velocity_is_the_time_derivative_of_the_state() -> None:
    x0, eps, h = images(0), images(1), 1e-6
    for process in (VPCosine(), EDM(sigma_max=10.0), RectifiedFlow(), Trig()):
        x = process.add_noise(x0, eps, T_B)
        slope = (process.add_noise(x0, eps, T_B + h) - process.add_noise(x0, eps, T_B - h)) / (2 * h)
        np.testing.assert_allclose(to_flow(x, x0, process.at(T_B)), slope, rtol=1e-5, atol=1e-6)


def test_rectified_flow_velocity_is_noise_minus_data_even_at_pure_noise() -> None:
    level = RectifiedFlow().at(1.0)
    p, q = x0_coefficients(Prediction.FLOW, level)
    assert (p, q) == (1.0, -1.0)
    x0, eps = images(0), images(1)
    np.testing.assert_allclose(Parameterization(prediction=Prediction.FLOW).to_x0(eps, eps - x0, level), x0)


@every_process
@every_network
def test_target_is_the_inverse_of_to_x0(process: NoiseProcess, network: Parameterization) -> None:
    x0, eps, level = images(0), images(1), process.at(T_B)
    x = process.add_noise(x0, eps, T_B)
    np.testing.assert_allclose(network.to_x0(x, network.target(x, x0, level), level), x0, rtol=1e-8, atol=1e-10)


@every_process
@every_network
def test_torch_agrees_with_numpy(process: NoiseProcess, network: Parameterization) -> None:
    torch = pytest.importorskip("torch")
    x, F = images(0), images(1)
    expected = network.to_x0(x, F, process.at(T_B))
    result = network.to_x0(torch.from_numpy(x), torch.from_numpy(F), process.at(torch.from_numpy(T_B)))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-10)


def test_edm_scalings_are_those_of_the_paper() -> None:
    sigma, data = 3.0, 0.5
    skip, out, c_in = EDMPreconditioning(sigma_data=data).scalings(NoiseLevel(alpha=1.0, sigma=sigma))
    norm = sigma**2 + data**2
    assert skip == pytest.approx(data**2 / norm)
    assert out == pytest.approx(sigma * data / norm**0.5)
    assert c_in == pytest.approx(norm**-0.5)


@pytest.mark.parametrize("preconditioning", [EDMPreconditioning(), ConsistencyBoundary(), TrigPreconditioning()])
def test_preconditioning_depends_on_snr_only(preconditioning: Preconditioning) -> None:
    """A state of another process at the same SNR is a multiple; network input and x0 must not change."""
    x, F, ratio = 1.7, 0.3, 2.0
    results = []
    for alpha in (1.0, 0.5, 0.2):
        skip, out, c_in = preconditioning.scalings(NoiseLevel(alpha=alpha, sigma=alpha * ratio))
        results.append((c_in * alpha * x, skip * alpha * x + out * F))
    np.testing.assert_allclose(results, [results[0]] * 3, rtol=1e-12)


@pytest.mark.parametrize("preconditioning", [EDMPreconditioning(), ConsistencyBoundary(), TrigPreconditioning()])
def test_preconditioning_at_pure_noise_is_finite(preconditioning: Preconditioning) -> None:
    scalings = preconditioning.scalings(NoiseLevel(alpha=0.0, sigma=1.0))
    assert np.all(np.isfinite(scalings))
    assert scalings[0] == 0.0


def test_consistency_boundary_is_the_identity_at_sigma_min() -> None:
    process = EDM(sigma_min=0.002)
    network = Parameterization(prediction=Prediction.X0, preconditioning=ConsistencyBoundary(sigma_min=0.002))
    p, q, _ = network.coefficients(process.at(0.0))
    assert p == pytest.approx(1.0, abs=1e-12)
    assert q == pytest.approx(0.0, abs=1e-12)


def test_lcm_boundary_wraps_the_noise_prediction() -> None:
    level = VPLinear().at(VPLinear().t_from_model_time(759.0))
    p, q, c_in = Parameterization(prediction=Prediction.EPS, preconditioning=LCMBoundary()).coefficients(level)
    skip, out = 0.25 / (7590.0**2 + 0.25), 7590.0 / (7590.0**2 + 0.25) ** 0.5
    assert p == pytest.approx(skip + out / level.alpha)
    assert q == pytest.approx(-out * level.sigma / level.alpha)
    assert c_in == 1.0


def test_trig_preconditioning_is_trigflow() -> None:
    process = Trig(sigma_data=0.5)
    level = process.at(0.4)
    p, q, c_in = Parameterization(
        prediction=Prediction.X0, preconditioning=TrigPreconditioning(sigma_data=0.5)
    ).coefficients(level)
    angle = 0.4 * np.pi / 2
    assert p == pytest.approx(np.cos(angle))
    assert q == pytest.approx(-np.sin(angle) * 0.5)
    assert c_in == pytest.approx(2.0)


@every_process
def test_inverse_ddim_round_trip(process: NoiseProcess) -> None:
    x_t, x0 = images(2), images(3)
    t, s = process.at(np.array([0.9, 0.5, 0.3])), process.at(np.array([0.6, 0.49, 0.0]))
    x_s = ddim_jump(x_t, x0, t, s)
    np.testing.assert_allclose(inverse_ddim_target(x_t, x_s, t, s), x0, rtol=1e-8, atol=1e-9)


def test_ddim_jump_moves_exact_states_along_their_line() -> None:
    x0, eps = images(0), images(1)
    for process in PROCESSES:
        t, s = np.array([0.9, 0.5, 0.3]), np.array([0.6, 0.1, 0.0])
        moved = ddim_jump(process.add_noise(x0, eps, t), x0, process.at(t), process.at(s))
        np.testing.assert_allclose(moved, process.add_noise(x0, eps, s), rtol=1e-9, atol=1e-10)


def test_eps_at_pure_noise_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        x0_coefficients(Prediction.EPS, NoiseLevel(alpha=0.0, sigma=1.0))
    assert caught.value.code == "eps-at-zero-snr"


def test_preconditioning_that_defines_x0_takes_no_other_prediction() -> None:
    with pytest.raises(ValueError, match="x0"):
        Parameterization(prediction=Prediction.EPS, preconditioning=EDMPreconditioning())


@every_network
def test_json_round_trip(network: Parameterization) -> None:
    assert Parameterization.from_json(json.loads(json.dumps(network.to_json()))) == network


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"prediction": "eps"},
        {"prediction": "noise", "preconditioning": {"kind": "none"}},
        {"prediction": "x0", "preconditioning": {"kind": "edm2"}},
        {"prediction": "x0", "preconditioning": {"kind": "edm", "sigma": 1.0}},
        {"prediction": "x0", "preconditioning": {"kind": "edm", "sigma_data": -1.0}},
        {"prediction": "x0", "preconditioning": {"kind": "edm", "sigma_data": "half"}},
        {"prediction": "eps", "preconditioning": {"kind": "edm", "sigma_data": 0.5}},
        {"prediction": "x0", "preconditioning": "edm"},
        {"prediction": "x0", "preconditioning": {"kind": "none"}, "scale": 2},
    ],
)
def test_bad_json_is_an_artifact_error(data: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError) as caught:
        Parameterization.from_json(data)
    assert caught.value.code == "parameterization-invalid"
