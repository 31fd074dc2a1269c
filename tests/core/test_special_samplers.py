"""Samplers that start, end or jump in their own ways, and times that are refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
from gaussian_flow import (
    MEAN,
    PREDICTIONS,
    TIMES,
    Array,
    Z,
    every_process,
    exact_flow,
    exact_x0,
    gaussian_network,
    unit_noise,
)

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import LCMBoundary, Parameterization, Prediction
from distill_rt.core.process import EDM, NoiseProcess, RectifiedFlow, Trig, VPCosine, VPLinear
from distill_rt.core.samplers.consistency import multistep_consistency, one_step
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.ddpm import ddpm
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.samplers.euler import euler, euler_churn, euler_flow
from distill_rt.core.samplers.flow_map import ctm, flow_map
from distill_rt.core.samplers.heun import heun
from distill_rt.core.samplers.tcd import tcd
from distill_rt.core.table import NO_NETWORK, run_table


@pytest.mark.parametrize("process", [RectifiedFlow(), Trig(), VPCosine(log_snr_min=None, log_snr_max=None)])
def test_samplers_start_at_pure_noise(process: NoiseProcess) -> None:
    times = (1.0, 0.6, 0.3)
    network = Parameterization(prediction=Prediction.FLOW)
    for sampler in (ddim, dpmpp_2m, multistep_consistency, tcd, ddpm, euler_flow):
        result = run_table(sampler(process, network, times), Z, gaussian_network(process, network), unit_noise)
        assert np.all(np.isfinite(result))
    with pytest.raises(UsageError, match="alpha = 0"):
        heun(process, network, times)
    with pytest.raises(UsageError, match="alpha = 0"):
        ddim(process, Prediction.EPS, times)


def test_one_step_from_pure_noise_is_the_mean() -> None:
    """At infinite noise the best guess of every image is the data mean."""
    network = Parameterization(prediction=Prediction.FLOW)
    result = run_table(one_step(RectifiedFlow(), network), Z, gaussian_network(RectifiedFlow(), network))
    np.testing.assert_allclose(result, MEAN, rtol=1e-12)


def test_one_step_takes_its_own_noise_scale() -> None:
    process = EDM()
    t = float(process.t_from_sigma_ratio(2.5))
    assert one_step(process, PREDICTIONS[3], time=t).init_scale == pytest.approx(2.5)
    assert one_step(process, PREDICTIONS[3], time=t, init_scale=1.0).init_scale == 1.0


def test_euler_flow_on_the_rectified_flow_is_ddim() -> None:
    flow = euler_flow(RectifiedFlow(), Prediction.FLOW, (1.0, 0.6, 0.3))
    plain = ddim(RectifiedFlow(), Prediction.FLOW, (1.0, 0.6, 0.3))
    for row, other, dt in zip(flow.rows, plain.rows, (0.4, 0.3, 0.3), strict=True):
        np.testing.assert_allclose(row.folded(), (1.0, -dt, 0.0), atol=1e-15)
        np.testing.assert_allclose(other.folded(), (1.0, -dt, 0.0), atol=1e-15)


@every_process
def test_tcd_ends(process: NoiseProcess) -> None:
    plain, jumps = ddim(process, Prediction.V, TIMES), tcd(process, Prediction.V, TIMES, gamma=0.0)
    fresh, noised = multistep_consistency(process, Prediction.V, TIMES), tcd(process, Prediction.V, TIMES, gamma=1.0)
    for a, b in ((plain, jumps), (fresh, noised)):
        for row, other in zip(a.rows, b.rows, strict=True):
            np.testing.assert_allclose(row.folded(), other.folded(), rtol=1e-12, atol=1e-15)


def test_consistency_model_rows() -> None:
    """Song et al. 2023, algorithm 1: x = f + sqrt(sigma^2 - sigma_min^2) * z."""
    process = EDM()
    times = (1.0, float(process.t_from_sigma_ratio(0.821)))
    table = multistep_consistency(process, PREDICTIONS[3], times, sigma_floor=process.sigma_min, clip=1.0)
    assert table.init_scale == pytest.approx(80.0)
    assert table.rows[0].n == pytest.approx(math.sqrt(0.821**2 - 0.002**2))
    assert [row.g for row in table.rows] == [1.0, 1.0]
    assert [row.clip for row in table.rows] == [1.0, 1.0]
    assert [row.stream for row in table.rows] == [1, 2]
    assert table.rows[1].n == 0.0


def test_lcm_student_in_general_notation() -> None:
    """The 4-step LCM row of the literature: a = alpha'(skip + out/alpha), b = -alpha' out sigma / alpha, n = sigma'."""
    process = VPLinear()
    timesteps = (999.0, 759.0, 499.0, 259.0)
    times = tuple(float(process.t_from_model_time(i)) for i in timesteps)
    network = Parameterization(prediction=Prediction.EPS, preconditioning=LCMBoundary())
    table = multistep_consistency(process, network, times)
    np.testing.assert_allclose([row.time for row in table.rows], timesteps)
    here, there = process.at(times[1]), process.at(times[2])
    skip, out, _ = LCMBoundary().scalings(here)
    expected = (there.alpha * (skip + out / here.alpha), -there.alpha * out * here.sigma / here.alpha, there.sigma)
    np.testing.assert_allclose(table.rows[1].folded(), expected, rtol=1e-12)


@every_process
def test_churn_adds_noise_before_the_network(process: NoiseProcess) -> None:
    """Karras et al. 2022, algorithm 2, first order part, as a plain loop over y = x / alpha and sigma / alpha."""
    sigmas = (1.5, 0.9, 0.3)
    times = tuple(float(process.t_from_sigma_ratio(sigma)) for sigma in sigmas)
    network = Parameterization(prediction=Prediction.V)
    table = euler_churn(process, network, times, s_churn=0.6, s_tmin=0.5, s_noise=1.01)
    assert [row.net_id == NO_NETWORK for row in table.rows] == [True, False, True, False, False]
    y, stream = table.init_scale * Z / process.alpha(times[0]), 1
    for sigma, following in zip(sigmas, (*sigmas[1:], 0.0), strict=True):
        raised = sigma
        if sigma >= 0.5:
            raised = sigma * 1.2
            y = y + 1.01 * math.sqrt(raised**2 - sigma**2) * unit_noise(stream)
        t = float(process.t_from_sigma_ratio(raised))
        x0 = exact_x0(process, y * process.alpha(t), float(process.model_time(t)))
        y = y + (following - raised) * (y - x0) / raised
        stream += 2
    result = run_table(table, Z, gaussian_network(process, network), unit_noise)
    np.testing.assert_allclose(result, y, rtol=1e-8)


def test_churn_beyond_the_process_is_refused() -> None:
    with pytest.raises(UsageError) as caught:
        euler_churn(EDM(), PREDICTIONS[3], (1.0, 0.5), s_churn=1.0)
    assert caught.value.code == "churn-out-of-range"


@every_process
def test_churn_zero_is_euler(process: NoiseProcess) -> None:
    plain = euler(process, Prediction.V, TIMES)
    calm = euler_churn(process, Prediction.V, TIMES, s_churn=0.0)
    assert [(row.time, *row.folded()) for row in calm.rows] == [(row.time, *row.folded()) for row in plain.rows]
    assert calm.init_scale == plain.init_scale


def test_flow_map_follows_average_velocities_exactly() -> None:
    """The exact average velocity of Gaussian data takes the exact flow in any number of steps."""
    process = RectifiedFlow(time_scale=1.0)

    def average_velocity(net_id: int, x: Array, time: float, second_time: float | None) -> Array:
        assert second_time is not None
        return (x - exact_flow(process, x, time, second_time)) / (time - second_time)

    for times in ((1.0,), (1.0, 0.5), (1.0, 0.8, 0.3)):
        table = flow_map(process, times)
        expected = exact_flow(process, Z, 1.0, 0.0)
        np.testing.assert_allclose(run_table(table, Z, average_velocity), expected, rtol=1e-12)
        for row, t, s in zip(table.rows, times, (*times[1:], 0.0), strict=True):
            np.testing.assert_allclose(row.folded(), (1.0, -(t - s), 0.0), atol=1e-15)


def test_flow_map_second_time() -> None:
    process = RectifiedFlow(time_scale=1000.0)
    target = flow_map(process, (1.0, 0.25))
    interval = flow_map(process, (1.0, 0.25), second_time="interval")
    assert [(row.time, row.second_time) for row in target.rows] == [(1000.0, 250.0), (250.0, 0.0)]
    assert [(row.time, row.second_time) for row in interval.rows] == [(1000.0, 750.0), (250.0, 250.0)]
    assert target.uses_second_time


def test_ctm_jumps_are_the_paper() -> None:
    """Kim et al. 2023: x_s = (s/t) x + (1 - s/t) g, then gamma * s of fresh noise."""
    process, gamma = EDM(), 0.6
    sigmas = (80.0, 10.0, 1.0)
    times = tuple(float(process.t_from_sigma_ratio(sigma)) for sigma in sigmas)
    rows = ctm(process, PREDICTIONS[3], times, gamma=gamma).rows
    for i in range(2):
        below = math.sqrt(1 - gamma**2) * sigmas[i + 1]
        assert rows[i].r == pytest.approx(below / sigmas[i])
        assert rows[i].g == pytest.approx(1 - below / sigmas[i])
        assert rows[i].n == pytest.approx(gamma * sigmas[i + 1])
        assert rows[i].second_time == pytest.approx(0.25 * math.log(below))
    assert rows[2].second_time == pytest.approx(0.25 * math.log(process.sigma_min))
    assert rows[2].n == 0.0


def test_clip_limits_x0() -> None:
    for sampler in (ddim, ddpm, dpmpp_2m, multistep_consistency, heun, euler):
        table = sampler(VPCosine(), Prediction.V, TIMES, clip=0.4)
        assert {row.clip for row in table.rows} == {0.4}
        result = run_table(table, 5 * Z, gaussian_network(VPCosine(), PREDICTIONS[1]), unit_noise)
        assert np.abs(result).max() <= 0.4


@every_process
def test_float32_storage_hardly_moves_the_sample(process: NoiseProcess) -> None:
    for sampler in (ddim, dpmpp_2m, multistep_consistency, tcd, heun):
        table = sampler(process, Prediction.V, TIMES)
        network = gaussian_network(process, PREDICTIONS[1])
        exact = run_table(table, Z, network, unit_noise)
        np.testing.assert_allclose(run_table(table.as_float32(), Z, network, unit_noise), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("times", [(), (0.5, 0.5), (0.2, 0.7), (1.2, 0.5), (0.5, -0.1), (float("nan"),)])
def test_bad_times_are_refused(times: tuple[float, ...]) -> None:
    for sampler in (ddim, ddpm, dpmpp_2m, multistep_consistency, tcd, heun, euler, euler_flow, ctm):
        with pytest.raises(UsageError) as caught:
            sampler(RectifiedFlow(), Prediction.FLOW, times)
        assert caught.value.code == "times-invalid"
    with pytest.raises(UsageError):
        flow_map(RectifiedFlow(), times)


def test_an_evaluation_without_noise_is_refused() -> None:
    for sampler in (ddim, ddpm, dpmpp_2m, multistep_consistency, heun):
        with pytest.raises(UsageError, match="noise left") as caught:
            sampler(RectifiedFlow(), Prediction.FLOW, (1.0, 0.5, 0.0))
        assert caught.value.code == "times-invalid"
    assert len(ddim(RectifiedFlow(), Prediction.FLOW, (1.0, 0.5), end=0.0).rows) == 2


def test_an_end_above_the_last_time_is_refused() -> None:
    with pytest.raises(UsageError):
        ddim(VPCosine(), Prediction.V, (0.9, 0.5), end=0.6)


@pytest.mark.parametrize("eta", [-0.1, 1.1])
def test_eta_and_gamma_are_shares(eta: float) -> None:
    with pytest.raises(ValueError, match="eta"):
        ddim(VPCosine(), Prediction.V, TIMES, eta=eta)
    with pytest.raises(ValueError, match="gamma"):
        tcd(VPCosine(), Prediction.V, TIMES, gamma=eta)
    with pytest.raises(ValueError, match="gamma"):
        ctm(VPCosine(), Prediction.V, TIMES, gamma=eta)
