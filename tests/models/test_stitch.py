"""A stitched student directory loads, and each evaluation is that of its network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from tiny_networks import make_contract, make_inputs, make_network

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import NetworkSpec
from distill_rt.models.stitch import stitch_students
from distill_rt.models.student import load_student, save_student


def test_two_students_to_one(tmp_path: Path) -> None:
    big = make_contract("mlp")
    config = {**big.networks[0].config, "width": 8}
    small = dataclasses.replace(big, networks=(NetworkSpec(kind="mlp", config=config),))
    for name, spec in (("big", big), ("small", small)):
        save_student(tmp_path / name, spec, [make_network(spec)])
    stitch_students(tmp_path / "big", tmp_path / "small", tmp_path / "both", first=1)
    loaded, parts = load_student(tmp_path / "both"), [load_student(tmp_path / name) for name in ("big", "small")]
    assert [row.net_id for row in loaded.spec.plans[4].rows] == [1, 0, 0, 0]
    inputs = make_inputs(big)
    for network, part in zip(loaded.networks, parts, strict=True):
        assert torch.equal(network(*inputs), part.networks[0](*inputs))
    with pytest.raises(UsageError, match="exists"):
        stitch_students(tmp_path / "big", tmp_path / "small", tmp_path / "both", first=1)
