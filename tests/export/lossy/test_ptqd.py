"""PTQD on errors of a known form: the fit finds them, the corrected trajectory is the student's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from handmade import make_ir, make_model, make_spec
from numpy.typing import NDArray
from plans import TABLES

from distill_rt.core.errors import UsageError
from distill_rt.export.lossy.ptqd import corrected_table, fit_correction, record_outputs, remove_bias_pass
from distill_rt.export.passes.unroll import unroll
from distill_rt.export.trajectory import run_plan

Array = NDArray[Any]

STEPS = 4
K = (0.1, -0.05, 0.2, 0.02)
MU = (0.3, -0.2, 0.1, 0.05)
RNG = np.random.default_rng(0)


def session(model: ir.Model) -> ort.InferenceSession:
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def test_the_fit_finds_k_mu_and_what_is_left() -> None:
    """Closed form: e_q = (1 + k) e + mu_c + n."""
    F = [RNG.standard_normal((8, 3, 16, 16)) + 0.5 for _ in K]
    mu = [RNG.standard_normal(3) for _ in K]
    noise = 0.01 * RNG.standard_normal(F[0].shape)
    F_q = [(1 + k) * x + m[:, None, None] + noise for k, m, x in zip(K, mu, F, strict=True)]
    correction = fit_correction(F, F_q)
    np.testing.assert_allclose(correction.k, K, atol=1e-3)
    np.testing.assert_allclose(correction.mu, mu, atol=2e-3)
    for x, y, left in zip(F, F_q, correction.unexplained, strict=True):
        assert left == pytest.approx(0.01 / np.sqrt(((y - x) ** 2).mean()), rel=0.05)


@pytest.mark.parametrize("name", ["ddim", "ddim that clips", "dpmpp-2m", "lcm", "every column"])
@pytest.mark.parametrize("guidance", ["none", "cfg"])
def test_a_correlated_error_is_divided_out(name: str, guidance: Any) -> None:
    """An engine whose every output is (1 + k) F + mu gives the student's images with the corrected table and bias."""
    spec = dataclasses.replace(make_spec(guidance), plans={STEPS: TABLES[name]})
    network = make_ir(make_model(spec))
    exact = session(network)
    calls = [0]

    def student(net_id: int, inputs: Mapping[str, Array]) -> Array:
        output: Array = exact.run(None, dict(inputs))[0]
        return output

    def engine(net_id: int, inputs: Mapping[str, Array]) -> Array:
        i = calls[0] % len(K)
        calls[0] += 1
        return (1 + np.float32(K[i])) * student(net_id, inputs) + np.float32(MU[i])

    request: dict[str, Any] = {"steps": STEPS, "guidance": 2.0, "seeds": (1, 2, 3), "labels": (0, 1, 2)}
    table = spec.plans[STEPS]
    correction = fit_correction(*record_outputs(spec, student, engine, **request))
    np.testing.assert_allclose(correction.k, K[: table.num_evaluations], atol=1e-4)
    plans = {STEPS: corrected_table(table, correction)}
    corrected = dataclasses.replace(spec, plans=plans)
    calls[0] = 0
    bias = iter(correction.mu)

    def unbiased(net_id: int, inputs: Mapping[str, Array]) -> Array:
        return engine(net_id, inputs) - np.float32(next(bias))[0]

    want = run_plan(spec, student, **request)
    calls[0] = 0
    wrong = run_plan(spec, engine, **request)
    calls[0] = 0
    got = run_plan(corrected, unbiased, **request)
    assert np.abs(wrong - want).max() > 0.02
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-4)


@pytest.mark.parametrize("guidance", ["none", "cfg"])
def test_the_bias_stands_in_the_graph(guidance: Any) -> None:
    """The pass adds it to every call: the graph equals a run of the plan with shifted outputs."""
    spec = dataclasses.replace(make_spec(guidance), plans={STEPS: TABLES["ddim"]})
    network = make_ir(make_model(spec))
    step = session(network)
    F = [RNG.standard_normal((2, 1, 4, 4)) for _ in K]
    correction = fit_correction(F, [x + mu for x, mu in zip(F, MU, strict=True)])
    model = unroll({"network0": network}, spec, STEPS, pixels=False)
    model = remove_bias_pass(spec.plans[STEPS], correction)(model)
    shift = iter(MU)

    def shifted(net_id: int, inputs: Mapping[str, Array]) -> Array:
        output: Array = step.run(None, dict(inputs))[0] - np.float32(next(shift))
        return output

    request: dict[str, Any] = {"steps": STEPS, "guidance": 2.0, "seeds": (1, 2), "labels": (0, 1)}
    want = run_plan(spec, shifted, **request)
    from distill_rt.core.noise import unit_noise

    feeds = {"noise": unit_noise((1, 2), spec.sample_shape, 0), "label": np.array([0, 1])}
    if guidance == "cfg":
        feeds["guidance"] = np.full(2, 2.0, np.float32)
    (got,) = session(model).run(None, feeds)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)


def test_an_engine_that_answers_something_else_is_refused() -> None:
    F = [RNG.standard_normal((4, 1, 8, 8))]
    with pytest.raises(UsageError, match="call 0"):
        fit_correction(F, [RNG.standard_normal((4, 1, 8, 8))])
    with pytest.raises(UsageError, match="call 0"):
        fit_correction([np.ones((4, 1, 8, 8))], F)
    with pytest.raises(ValueError, match="4 network calls"):
        corrected_table(TABLES["ddim"], fit_correction(F, F))
