"""Samplers against closed forms: exact flows of Gaussian data, orders of convergence, kept marginals, naive loops."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gaussian_flow import PREDICTIONS, TIMES, Array, Sampler, Z, error_of, every_process, gaussian_network, unit_noise

from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import NoiseProcess, VPCosine, VPLinear
from distill_rt.core.samplers.consistency import multistep_consistency
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.ddpm import ddpm
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.samplers.euler import euler, euler_ancestral, euler_flow
from distill_rt.core.samplers.flow_map import ctm
from distill_rt.core.samplers.heun import heun
from distill_rt.core.samplers.tcd import tcd
from distill_rt.core.table import StepTable, run_table


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
