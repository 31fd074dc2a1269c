"""Samplers against closed forms: exact flows of Gaussian data, orders of convergence, kept marginals, naive loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import EDMPreconditioning, LCMBoundary, Parameterization, Prediction
from distill_rt.core.process import EDM, NoiseProcess, RectifiedFlow, Trig, VPCosine, VPLinear
from distill_rt.core.samplers.consistency import multistep_consistency, one_step
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.ddpm import ddpm
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.samplers.euler import euler, euler_ancestral, euler_churn, euler_flow
from distill_rt.core.samplers.flow_map import ctm, flow_map
from distill_rt.core.samplers.heun import heun
from distill_rt.core.samplers.tcd import tcd
from distill_rt.core.table import NO_NETWORK, StepTable, run_table

Array = NDArray[np.float64]
Sampler = Callable[..., StepTable]

PROCESSES = [VPLinear(), VPCosine(), EDM(sigma_max=20.0), RectifiedFlow(), Trig()]
PREDICTIONS = [
    Parameterization(prediction=Prediction.EPS),
    Parameterization(prediction=Prediction.V),
    Parameterization(prediction=Prediction.FLOW),
    Parameterization(prediction=Prediction.X0, preconditioning=EDMPreconditioning()),
]
TIMES = (0.9, 0.7, 0.45, 0.2)
MEAN, STD = 0.3, 0.7
Z = np.linspace(-2.0, 2.0, 9)[None]

every_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: p.kind)


def unit_noise(stream: int) -> Array:
    return np.random.default_rng(stream).standard_normal(Z.shape)


def gaussian_network(process: NoiseProcess, network: Parameterization) -> Callable[..., Array]:
    """The exact network for x0 ~ N(MEAN, STD^2), in `network`'s output."""

    def evaluate(net_id: int, x_scaled: Array, time: float, second_time: float | None) -> Array:
        level = process.at(float(process.t_from_model_time(time)))
        x = x_scaled / network.coefficients(level)[2]
        return np.asarray(network.target(x, exact_x0(process, x, time), level))

    return evaluate


def exact_x0(process: NoiseProcess, x: Array, time: float) -> Array:
    """E[x0 | x_t] = MEAN + alpha*STD^2 / (alpha^2*STD^2 + sigma^2) * (x - alpha*MEAN)."""
    level = process.at(float(process.t_from_model_time(time)))
    gain = level.alpha * STD**2 / (level.alpha**2 * STD**2 + level.sigma**2)
    return np.asarray(MEAN + gain * (x - level.alpha * MEAN))


def exact_flow(process: NoiseProcess, x: Array, t: float, s: float) -> Array:
    """The probability flow of Gaussian data keeps the standard score: (x - alpha*MEAN) / std is constant."""
    here, there = process.at(t), process.at(s)
    ratio = math.hypot(there.alpha * STD, there.sigma) / math.hypot(here.alpha * STD, here.sigma)
    return np.asarray(there.alpha * MEAN + ratio * (x - here.alpha * MEAN))


def error_of(sampler: Sampler, process: NoiseProcess, network: Parameterization, num_steps: int) -> float:
    """Error after `num_steps` steps, uniform in log SNR, from t = 0.9 to 0.05."""
    low, high = (float(process.log_snr(t)) for t in (0.9, 0.05))
    grid = [float(process.t_from_log_snr(value)) for value in np.linspace(low, high, num_steps + 1)]
    table = sampler(process, network, tuple(grid[:-1]), end=grid[-1])
    result = run_table(table, Z, gaussian_network(process, network))
    return float(np.abs(result - exact_flow(process, table.init_scale * Z, grid[0], grid[-1])).max())


@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (ddim, 1),
        (euler, 1),
        (euler_flow, 1),
        (dpmpp_2m, 2),
        (lambda *a, **k: dpmpp_2m(*a, solver_type="heun", **k), 2),
        (heun, 2),
    ],
    ids=["ddim", "euler", "euler_flow", "dpmpp_2m", "dpmpp_2m-heun", "heun"],
)
@every_process
def test_order_of_convergence(sampler: Sampler, order: int, process: NoiseProcess) -> None:
    if sampler is euler_flow and isinstance(process, VPLinear):
        process = VPLinear(num_train_timesteps=100_000, beta_start=0.00085e-2, beta_end=0.012e-2)  # a smooth clock
    errors = [error_of(sampler, process, PREDICTIONS[1], n) for n in (40, 80, 160)]
    slopes = np.log2(np.asarray(errors[:-1]) / np.asarray(errors[1:]))
    assert np.all(np.abs(slopes - order) < 0.25), (errors, slopes)


@pytest.mark.parametrize("network", PREDICTIONS, ids=lambda n: f"{n.prediction}-{n.preconditioning.kind}")
@every_process
def test_prediction_type_does_not_change_the_sample(process: NoiseProcess, network: Parameterization) -> None:
    for sampler in (ddim, dpmpp_2m, multistep_consistency, tcd, heun, ddpm):
        expected = sampler(process, Prediction.X0, TIMES)
        reference = run_table(
            expected, Z, gaussian_network(process, Parameterization(prediction=Prediction.X0)), unit_noise
        )
        result = run_table(sampler(process, network, TIMES), Z, gaussian_network(process, network), unit_noise)
        np.testing.assert_allclose(result, reference, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize(
    "sampler",
    [
        lambda p: ddim(p, Prediction.X0, TIMES, eta=0.0),
        lambda p: ddim(p, Prediction.X0, TIMES, eta=0.6),
        lambda p: ddim(p, Prediction.X0, TIMES, eta=1.0, end=0.05),
        lambda p: ddpm(p, Prediction.X0, TIMES),
        lambda p: euler_ancestral(p, Prediction.X0, TIMES),
        lambda p: multistep_consistency(p, Prediction.X0, TIMES, end=0.1),
        lambda p: tcd(p, Prediction.X0, TIMES, gamma=0.0),
        lambda p: tcd(p, Prediction.X0, TIMES, gamma=0.4, end=0.1),
        lambda p: tcd(p, Prediction.X0, TIMES, gamma=1.0),
        lambda p: ctm(p, Prediction.X0, TIMES, gamma=0.0),
        lambda p: ctm(p, Prediction.X0, TIMES, gamma=0.7),
    ],
    ids=["ddim0", "ddim.6", "ddim1", "ddpm", "ancestral", "consistency", "tcd0", "tcd.4", "tcd1", "ctm0", "ctm.7"],
)
@every_process
def test_marginals_are_kept(process: NoiseProcess, sampler: Callable[[NoiseProcess], StepTable]) -> None:
    """If x0 is exact and x_t = alpha_t*x0 + sigma_t*eps, then x_s has mean alpha_s*x0 and variance sigma_s^2."""
    levels = [process.at(t) for t in TIMES]
    rows = sampler(process).rows
    assert len(rows) == len(TIMES)
    for row, t, s in zip(rows[:-1], levels[:-1], levels[1:], strict=True):
        assert row.r * t.alpha + row.g == pytest.approx(s.alpha, abs=1e-12)
        assert (row.r * t.sigma) ** 2 + row.n**2 == pytest.approx(s.sigma**2, rel=1e-9)


@every_process
def test_a_last_step_to_clean_data_returns_x0(process: NoiseProcess) -> None:
    for sampler in (ddim, euler_ancestral, ddpm, multistep_consistency, tcd, dpmpp_2m, heun):
        last = sampler(process, Prediction.X0, TIMES).rows[-1]
        assert (last.r, last.g, last.h1, last.k, last.n) == (0.0, 1.0, 0.0, 0.0, 0.0)


@every_process
def test_ddim_eta_1_is_the_posterior(process: NoiseProcess) -> None:
    """Bayes: q(x_s | x_t, x0) from q(x_s | x0) and q(x_t | x_s) = N(a*x_s, b^2)."""
    for row, t, s in zip(ddim(process, Prediction.X0, TIMES, eta=1.0).rows, TIMES, TIMES[1:], strict=False):
        here, there = process.at(t), process.at(s)
        a = here.alpha / there.alpha
        b2 = here.sigma**2 - a**2 * there.sigma**2
        variance = 1 / (1 / there.sigma**2 + a**2 / b2)
        assert row.n == pytest.approx(math.sqrt(variance), rel=1e-9)
        assert row.r == pytest.approx(variance * a / b2, rel=1e-9)
        assert row.g == pytest.approx(variance * there.alpha / there.sigma**2, rel=1e-9)


def test_ddpm_large_variance_is_the_forward_step() -> None:
    process = VPCosine()
    small, large = (ddpm(process, Prediction.X0, TIMES, variance=v).rows for v in ("small", "large"))
    for i, (t, s) in enumerate(itertools.pairwise(TIMES)):
        beta = 1 - (process.alpha(t) / process.alpha(s)) ** 2
        assert large[i].n == pytest.approx(math.sqrt(beta))
        assert large[i].n > small[i].n
        assert (large[i].r, large[i].g) == (small[i].r, small[i].g)
    assert large[-1].n == 0.0


@every_process
def test_euler_is_euler_in_sigma_over_alpha(process: NoiseProcess) -> None:
    network = gaussian_network(process, Parameterization(prediction=Prediction.X0))
    table = euler(process, Prediction.X0, TIMES, end=0.1)
    t_path = (*TIMES, 0.1)
    y = table.init_scale * Z / process.alpha(TIMES[0])
    for t, s in itertools.pairwise(t_path):
        rho_t, rho_s = process.sigma_ratio(t), process.sigma_ratio(s)
        x0 = network(0, y * process.alpha(t), process.model_time(t), None)
        y = y + (rho_s - rho_t) * (y - x0) / rho_t
    np.testing.assert_allclose(run_table(table, Z, network), y * process.alpha(0.1), rtol=1e-9)


@every_process
def test_heun_is_heun_in_sigma_over_alpha(process: NoiseProcess) -> None:
    network = gaussian_network(process, Parameterization(prediction=Prediction.X0))

    def slope(y: Array, t: float) -> Array:
        x0 = network(0, y * process.alpha(t), process.model_time(t), None)
        return np.asarray((y - x0) / process.sigma_ratio(t))

    table = heun(process, Prediction.X0, TIMES)
    y = table.init_scale * Z / process.alpha(TIMES[0])
    for t, s in itertools.pairwise(TIMES):
        step = process.sigma_ratio(s) - process.sigma_ratio(t)
        first = slope(y, t)
        y = y + step * 0.5 * (first + slope(y + step * first, s))
    x0 = network(0, y * process.alpha(TIMES[-1]), process.model_time(TIMES[-1]), None)
    np.testing.assert_allclose(run_table(table, Z, network), x0, rtol=1e-9)
    assert table.num_evaluations == 2 * len(TIMES) - 1


@pytest.mark.parametrize("solver_type", ["midpoint", "heun"])
@every_process
def test_dpmpp_2m_is_the_paper(process: NoiseProcess, solver_type: Any) -> None:
    """Lu et al. 2022, algorithm 2, in log(alpha / sigma), with the slope of x0 written out."""
    network = gaussian_network(process, Parameterization(prediction=Prediction.X0))
    table = dpmpp_2m(process, Prediction.X0, TIMES, end=0.1, solver_type=solver_type)
    path = (*TIMES, 0.1)
    x, h_past = table.init_scale * Z, 0.0
    past: Array | None = None
    for t, s in itertools.pairwise(path):
        x0 = network(0, x, process.model_time(t), None)
        h = 0.5 * (process.log_snr(s) - process.log_snr(t))
        decay = 1 - math.exp(-h)
        update = process.alpha(s) * decay * x0
        if past is not None:
            slope = (x0 - past) / h_past * h
            update = update + process.alpha(s) * slope * (0.5 * decay if solver_type == "midpoint" else 1 - decay / h)
        x = process.sigma(s) / process.sigma(t) * x + update
        past, h_past = x0, h
    np.testing.assert_allclose(run_table(table, Z, network), x, rtol=1e-9)


def test_dpmpp_2m_lower_order_final() -> None:
    rows = dpmpp_2m(VPCosine(), Prediction.V, TIMES, end=0.1, lower_order_final=True).rows
    assert [row.h1 != 0 for row in rows] == [False, True, True, False]


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
