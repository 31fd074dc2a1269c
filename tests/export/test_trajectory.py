"""What a network is called with on a trajectory, and what comes of its answers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from handmade import GuidanceMode, make_spec
from numpy.typing import NDArray

from distill_rt.core.noise import unit_noise
from distill_rt.export.trajectory import run_plan

Array = NDArray[Any]


def run(mode: GuidanceMode) -> tuple[Array, list[dict[str, Array]]]:
    """One step with a network that answers 0 without a condition and 0.5 with one; and what it was called with."""
    spec = make_spec(mode)
    calls: list[dict[str, Array]] = []

    def evaluate(net_id: int, inputs: Mapping[str, Array]) -> Array:
        calls.append({name: value.copy() for name, value in inputs.items()})
        is_uncond = inputs["label"] == spec.condition.null_label
        return np.where(is_uncond[:, None, None, None], 0.0, 0.5).astype(np.float32) * np.ones_like(inputs["sample"])

    images = run_plan(spec, evaluate, steps=1, guidance=3.0, seeds=[7, 8], labels=[0, 2])
    return images, calls


def expected(F: float | Array) -> Array:
    (row,) = make_spec().plans[1].as_float32().rows
    a, b, n = row.folded()
    assert n == 0
    return a * unit_noise([7, 8], (1, 4, 4)) * make_spec().plans[1].init_scale + b * F


def test_embedded_guidance_is_an_input() -> None:
    images, (call,) = run("embedded")
    assert list(call) == ["sample", "time", "label", "guidance"]
    assert call["guidance"].tolist() == [3.0, 3.0]
    assert call["label"].tolist() == [0, 2]
    assert call["label"].dtype == np.int64
    assert call["time"].dtype == call["sample"].dtype == np.float32
    assert images.dtype == np.float32
    np.testing.assert_allclose(images, expected(0.5), rtol=1e-5)


def test_cfg_evaluates_unconditional_first() -> None:
    images, (call,) = run("cfg")
    assert list(call) == ["sample", "time", "label"]
    assert call["label"].tolist() == [3, 3, 0, 2]  # 3 is the null label
    assert np.array_equal(call["sample"][:2], call["sample"][2:])
    np.testing.assert_allclose(images, expected(0.0 + 3.0 * (0.5 - 0.0)), rtol=1e-5)


def test_no_guidance() -> None:
    images, (call,) = run("none")
    assert list(call) == ["sample", "time", "label"]
    np.testing.assert_allclose(images, expected(0.5), rtol=1e-5)


def test_rescale_is_applied() -> None:
    """Full rescaling gives the guided output the deviation of the conditional one (Lin et al. 2023, equation 15)."""
    spec = make_spec("cfg")
    spec = dataclasses.replace(spec, guidance=dataclasses.replace(spec.guidance, rescale=1.0))
    pattern = np.random.default_rng(0).standard_normal((1, 4, 4)).astype(np.float32)

    def evaluate(net_id: int, inputs: Mapping[str, Array]) -> Array:
        is_cond = inputs["label"] != spec.condition.null_label
        return is_cond[:, None, None, None] * pattern

    images = run_plan(spec, evaluate, steps=1, guidance=3.0, seeds=[7, 8], labels=[0, 2])
    np.testing.assert_allclose(images, expected(pattern), rtol=1e-4, atol=1e-5)  # 3 * pattern without it


@pytest.mark.parametrize("mode", ["embedded", "cfg"])
def test_an_image_depends_on_its_seed_alone(mode: GuidanceMode) -> None:
    spec = make_spec(mode)

    def evaluate(net_id: int, inputs: Mapping[str, Array]) -> Array:
        return np.tanh(inputs["sample"]) + inputs["label"][:, None, None, None].astype(np.float32)

    both = run_plan(spec, evaluate, steps=4, guidance=2.0, seeds=[1, 2], labels=[0, 1])
    alone = run_plan(spec, evaluate, steps=4, guidance=2.0, seeds=[2], labels=[1])
    assert np.array_equal(both[1:], alone)
