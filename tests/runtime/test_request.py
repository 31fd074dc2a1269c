"""Requests: what no student would accept, what one contract does not accept, and what an open request becomes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from tiny_engine import tiny_spec

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import Condition, Guidance
from distill_rt.runtime.request import MAX_IMAGES, Request

SHAPE = (1, 4, 4)
PLAIN = tiny_spec(condition=Condition(), guidance=Guidance())


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"seed": -1}, "seed-out-of-range"),
        ({"seed": 2**64}, "seed-out-of-range"),
        ({"seed": 1.5}, "seed-type"),
        ({"seed": "7"}, "seed-type"),
        ({"seed": True}, "seed-type"),
        ({"num_images": 0}, "num-images-out-of-range"),
        ({"num_images": -4}, "num-images-out-of-range"),
        ({"num_images": MAX_IMAGES + 1}, "num-images-out-of-range"),
        ({"num_images": 2.0}, "num-images-type"),
        ({"steps": 0}, "steps-out-of-range"),
        ({"steps": 2.5}, "steps-type"),
        ({"guidance": float("nan")}, "guidance-type"),
        ({"guidance": float("inf")}, "guidance-type"),
        ({"guidance": "2"}, "guidance-type"),
        ({"guidance": True}, "guidance-type"),
        ({"labels": 3}, "labels-type"),
        ({"labels": "3"}, "labels-type"),
        ({"labels": b"3"}, "labels-type"),
        ({"labels": np.array(3)}, "labels-type"),
        ({"labels": np.zeros((2, 2), int)}, "labels-type"),
        ({"guidance": b"2"}, "guidance-type"),
        ({"guidance": np.bool_(True)}, "guidance-type"),
        ({"labels": [1.5]}, "label-type"),
        ({"labels": [True]}, "label-type"),
        ({"prompts": "a digit"}, "prompts-type"),
        ({"prompts": [3]}, "prompts-type"),
        ({"latents": [[0.0]]}, "latents-shape"),
        ({"latents": np.zeros(SHAPE, np.float32)}, "latents-shape"),
    ],
)
def test_what_no_student_accepts(values: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        Request(**values)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "code", "allowed"),
    [
        ({"labels": [1], "steps": 7}, "steps-not-in-contract", "1, 2 or 4"),
        ({"labels": [1], "guidance": 4.5}, "guidance-not-in-contract", "1 to 4"),
        ({"labels": [1], "guidance": 0.99}, "guidance-not-in-contract", "1 to 4"),
        ({"labels": [1], "prompts": ["a digit"]}, "condition-not-in-contract", "takes a label and no text"),
        ({"labels": [10]}, "label-not-in-contract", "0 to 9"),
        ({"labels": [-1]}, "label-not-in-contract", "0 to 9"),
        ({}, "label-missing", "0 to 9"),
        ({"labels": []}, "label-missing", "0 to 9"),
        ({"labels": [1, 2], "num_images": 3}, "label-count", "2 labels for 3"),
        ({"labels": [1] * (MAX_IMAGES + 1)}, "labels-out-of-range", str(MAX_IMAGES)),
        ({"labels": [1], "latents": np.zeros((1, 3, 4, 4), np.float32)}, "latents-shape", "(1, 1, 4, 4)"),
        ({"labels": [1], "latents": np.zeros((2, *SHAPE))}, "latents-shape", "float32"),
        ({"labels": [1], "latents": np.full((1, *SHAPE), np.nan, np.float32)}, "latents-not-finite", "NaN"),
        ({"labels": [1], "latents": np.zeros((2, *SHAPE), np.float32), "num_images": 3}, "latents-count", "2 latents"),
    ],
)
def test_what_the_contract_does_not_accept(values: dict[str, Any], code: str, allowed: str) -> None:
    with pytest.raises(UsageError) as caught:
        Request(**values).resolve(tiny_spec())
    assert caught.value.code == code
    assert allowed in str(caught.value)


@pytest.mark.parametrize(
    ("values", "code"),
    [({"labels": [1]}, "condition-not-in-contract"), ({"guidance": 2.0}, "guidance-not-in-contract")],
)
def test_a_student_that_takes_nothing_refuses_conditions(values: dict[str, Any], code: str) -> None:
    with pytest.raises(UsageError) as caught:
        Request(**values).resolve(PLAIN)
    assert caught.value.code == code


@pytest.mark.parametrize("spec", [tiny_spec(), PLAIN], ids=["label", "plain"])
def test_a_resolved_request_resolves_to_itself(spec: Any) -> None:
    labels = (3,) if spec.condition.kind == "label" else None
    resolved = Request(labels=labels, num_images=2).resolve(spec)
    assert resolved.resolve(spec) == resolved
    assert resolved.steps == 2
    assert resolved.guidance == (2.0 if spec is not PLAIN else None)
    assert resolved.labels == ((3, 3) if labels else None)


def test_number_of_images_follows_labels_and_latents() -> None:
    spec = tiny_spec()
    assert Request(labels=[1]).resolve(spec).num_images == 1
    assert Request(labels=[1, 2, 3]).resolve(spec).num_images == 3
    assert Request(labels=[1], num_images=5).resolve(spec).num_images == 5
    latents = np.zeros((4, *SHAPE), np.float32)
    assert Request(labels=[1], latents=latents).resolve(spec).num_images == 4


def test_drawn_seeds_differ_and_survive_json_numbers() -> None:
    seeds = {Request(labels=[1]).resolve(tiny_spec()).seed for _ in range(50)}
    assert len(seeds) == 50
    assert all(seed is not None and int(float(seed)) == seed for seed in seeds)


def test_numpy_numbers_become_python_numbers() -> None:
    request = Request(
        labels=np.array([1, 2]), seed=np.uint64(2**64 - 1), num_images=np.int32(2), guidance=np.float32(2)
    )
    text = json.dumps(request.resolve(tiny_spec()).to_json())
    assert json.loads(text)["seed"] == 2**64 - 1
