"""The hot path against the reference interpreter of tables, bit for bit, on a network in NumPy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_engine import network, plan, tiny_spec

from distill_rt.backends.base import allocate, network_batch
from distill_rt.core.noise import image_seeds, unit_noise
from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.core.process import VPCosine
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.samplers.heun import heun
from distill_rt.core.spec import Condition, Guidance, NetworkSpec, StudentSpec
from distill_rt.core.table import Row, StepTable
from distill_rt.export.trajectory import run_plan
from distill_rt.runtime.sampler import Sampler
from distill_rt.runtime.timing import Stopwatch

Array = NDArray[Any]

V = Parameterization(prediction=Prediction.V)
TIMES = (0.95, 0.7, 0.4, 0.2)


class NumpyProgram:
    """A program that computes `tiny_engine.network`."""

    def __init__(self, spec: StudentSpec, net_id: int, batch: int) -> None:
        num = network_batch(spec, batch)
        self.inputs: Mapping[str, Array] = allocate(spec.network_inputs(), num)
        self.outputs: Mapping[str, Array] = allocate(spec.network_outputs(), num)
        self.net_id = net_id

    def run(self) -> None:
        self.outputs["prediction"][:] = network(self.net_id, self.inputs)


def sampler_for(spec: StudentSpec, batch: int) -> Sampler:
    return Sampler(spec, [NumpyProgram(spec, i, batch) for i in range(len(spec.networks))], batch)


def general_rows() -> StepTable:
    """Every column of the table at once, in an order that a sampler would never use."""
    rows = (
        Row(time=900.0, p=0.5, q=-0.5, g=0.7, r=0.2, set_anchor=True),
        Row(time=700.0, c_in=0.5, p=0.4, q=0.3, h1=0.2, clip=0.6, n=0.3, stream=2),
        Row(net_id=-1, r=0.9, n=0.1, stream=9),
        Row(time=500.0, net_id=1, q=0.8, h1=0.1, h2=-0.2, k=0.25, f=0.1, set_anchor=True),
        Row(time=300.0, q=0.9, h1=0.1, h2=-0.1, h3=0.05, k=-0.5, threshold_ratio=0.9, threshold_max=1.5),
        Row(net_id=-1, r=1.1, k=0.2),
        Row(time=100.0, p=0.1, q=0.8, clip=1.0, r=0.1, g=0.9),
    )
    return StepTable(init_scale=1.5, rows=rows).as_float32()


TWO_TIMES = StepTable(rows=(Row(time=900.0, second_time=300.0, r=0.4), Row(time=300.0, g=0.9))).as_float32()
TWO_NETWORKS = (NetworkSpec(kind="unet2d"), NetworkSpec(kind="unet2d"))

SPECS = {
    "affine": tiny_spec(),
    "colour, odd size": tiny_spec(sample_shape=(3, 5, 7)),
    "stochastic": tiny_spec(plans={3: plan(3, stochastic=True)}, default_steps=3),
    "ddim with clip": tiny_spec(plans={4: ddim(VPCosine(), V, TIMES, eta=1.0, clip=1.0).as_float32()}, default_steps=4),
    "history": tiny_spec(plans={4: dpmpp_2m(VPCosine(), V, TIMES).as_float32()}, default_steps=4),
    "anchor": tiny_spec(plans={4: heun(VPCosine(), V, TIMES).as_float32()}, default_steps=4),
    "general": tiny_spec(plans={5: general_rows()}, default_steps=5, networks=TWO_NETWORKS),
    "second time": tiny_spec(plans={2: TWO_TIMES}, default_steps=2),
    "no condition": tiny_spec(condition=Condition(), guidance=Guidance()),
    "cfg": tiny_spec(guidance=Guidance(mode="cfg", min=0.0, max=8.0, default=3.0)),
    "cfg rescaled": tiny_spec(guidance=Guidance(mode="cfg", max=8.0, default=3.0, rescale=0.7)),
}


def expected(spec: StudentSpec, steps: int, w: float | None, seeds: Array, labels: list[int] | None) -> Array:
    images: Array = run_plan(spec, network, steps=steps, guidance=w or 1.0, seeds=list(seeds), labels=labels)
    return images


def run(sampler: Sampler, spec: StudentSpec, steps: int, seeds: Array, labels: list[int] | None, **more: Any) -> Array:
    w = None if spec.guidance.mode == "none" else spec.guidance.default
    return sampler.run(
        spec.plans[steps], seeds=seeds, labels=labels, guidance=w, latents=None, watch=Stopwatch(), **more
    ).copy()


@pytest.mark.parametrize("name", SPECS)
def test_equals_the_reference_bit_for_bit(name: str) -> None:
    spec, batch = SPECS[name], 3
    sampler = sampler_for(spec, batch)
    seeds = image_seeds(40, batch)
    labels = [3, 0, 9] if spec.condition.kind == "label" else None
    w = None if spec.guidance.mode == "none" else spec.guidance.default
    for _ in range(2):  # the second run must not see what the first one left in the buffers
        for steps in spec.steps:
            np.testing.assert_array_equal(
                run(sampler, spec, steps, seeds, labels), expected(spec, steps, w, seeds, labels), strict=True
            )


def test_a_table_that_reads_history_and_anchor_too_early_sees_zeros_not_the_last_request() -> None:
    first = Row(time=900.0, h1=1.0, h2=1.0, h3=1.0, k=1.0, set_anchor=True)
    spec = tiny_spec(plans={2: StepTable(rows=(first, Row(time=100.0, k=0.5))).as_float32()})
    sampler = sampler_for(spec, 1)
    run(sampler, spec, 2, image_seeds(1, 1), [1])
    seeds = image_seeds(2, 1)
    np.testing.assert_array_equal(run(sampler, spec, 2, seeds, [2]), expected(spec, 2, 2.0, seeds, [2]))


@pytest.mark.parametrize("name", ["stochastic", "general", "cfg"])
def test_padding_changes_no_image(name: str) -> None:
    spec = SPECS[name]
    sampler = sampler_for(spec, 4)
    steps = spec.default_steps
    full = run(sampler, spec, steps, image_seeds(5, 4), [1, 2, 3, 4])
    padded = run(sampler, spec, steps, image_seeds(5, 2), [1, 2])
    np.testing.assert_array_equal(padded[:2], full[:2])
    assert np.isfinite(padded).all()


def test_on_row_receives_the_prediction_and_changes_nothing() -> None:
    spec = SPECS["general"]
    seeds = image_seeds(0, 2)
    seen: list[Array] = []
    images = run(sampler_for(spec, 2), spec, 5, seeds, [1, 2], on_row=lambda i, x0: seen.append(x0.copy()))
    np.testing.assert_array_equal(images, expected(spec, 5, 2.0, seeds, [1, 2]))
    assert len(seen) == 7
    assert np.abs(seen[1]).max() <= np.float32(0.6), "the second row clips its prediction"
    assert np.abs(seen[6]).max() <= np.float32(1.0)


def test_on_row_without_history_keeps_the_prediction_too() -> None:
    spec = SPECS["affine"]
    seeds = image_seeds(0, 1)
    seen: list[Array] = []
    z = expected(spec, 1, 2.0, seeds, [1])
    run(sampler_for(spec, 1), spec, 1, seeds, [1], on_row=lambda i, x0: seen.append(x0.copy()))
    (x0,) = seen
    row = spec.plans[1].rows[0]
    # One affine row: x_next = r*x + g*x0.
    x = unit_noise([0], spec.sample_shape)
    np.testing.assert_allclose(np.float32(row.r) * x + np.float32(row.g) * x0, z, rtol=1e-5, atol=1e-6)


def test_latents_take_the_place_of_the_initial_noise() -> None:
    spec = SPECS["affine"]
    sampler, seeds = sampler_for(spec, 2), image_seeds(11, 2)
    drawn = run(sampler, spec, 4, seeds, [1, 2])
    given = sampler.run(
        spec.plans[4],
        seeds=seeds,
        labels=[1, 2],
        guidance=2.0,
        latents=unit_noise(seeds, spec.sample_shape),
        watch=Stopwatch(),
    )
    np.testing.assert_array_equal(given, drawn)
