"""Other plans for a trained student: the ones that its training would have written, around the same weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from distill_rt.cli.main import main
from distill_rt.core.codec import from_json, to_json
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.models import build_network, load_student, save_student
from distill_rt.training.methods import METHODS
from distill_rt.training.recipes import RECIPES
from distill_rt.training.replan import plan_times, replan

ABLE = ("consistency", "lcm", "ect", "consistency_training", "scm", "rcm")


def contract(method: str, teacher: str = "grid25", **settings: object) -> StudentSpec:
    spec = METHODS[method](**settings).contract(RECIPES[f"{teacher}-teacher"]().spec)
    return dataclasses.replace(spec, provenance={**spec.provenance, "data": teacher, "seed": 3})


def save(path: Path, spec: StudentSpec) -> Path:
    torch.manual_seed(0)
    save_student(path, spec, [build_network(network) for network in spec.networks])
    return path


def written(spec: StudentSpec) -> StudentSpec:
    """As a directory holds it: a table's numbers are float32 there."""
    return from_json(StudentSpec, to_json(spec))


@pytest.mark.parametrize("teacher", ["grid25", "grid25-labelled"])
@pytest.mark.parametrize("method", ABLE)
def test_the_student_that_its_method_would_have_made(tmp_path, method, teacher):
    """Guided or not, the contract is equal to the last coefficient of every row, provenance included."""
    old = save(tmp_path / "old", contract(method, teacher, plan_power=1.0))
    made = replan(old, tmp_path / "new", power=2.5, steps=3)
    before, after = load_student(old), load_student(tmp_path / "new")
    assert after.spec == written(contract(method, teacher, plan_power=2.5, steps=3))
    assert (made["path"], made["digest"]) == (str(tmp_path / "new"), after.digest)
    weights = after.networks[0].state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in before.networks[0].state_dict().items())
    start = plan_times(after.spec, 1)[0]
    assert made["plans"]["3"] == pytest.approx([start * t for t in (1.0, (2 / 3) ** 2.5, (1 / 3) ** 2.5)], abs=1e-4)
    assert list(made["plans"]) == ["1", "2", "3"]


def test_what_is_not_named_is_kept(tmp_path):
    old = save(tmp_path / "old", contract("ect", plan_power=3.0, steps=2))
    replan(old, tmp_path / "longer", steps=4)
    assert load_student(tmp_path / "longer").spec == written(contract("ect", plan_power=3.0, steps=4))
    replan(old, tmp_path / "uniform", power=1.0)
    assert load_student(tmp_path / "uniform").spec == written(contract("ect", plan_power=1.0, steps=2))


def test_a_student_from_before_there_was_a_choice_has_uniform_times(tmp_path):
    uniform = contract("lcm", plan_power=1.0)
    settings = {key: value for key, value in uniform.provenance["settings"].items() if key != "plan_power"}
    spec = dataclasses.replace(uniform, provenance={**uniform.provenance, "settings": {**settings, "gone": 1}})
    old = save(tmp_path / "old", spec)
    replan(old, tmp_path / "new", steps=2)
    assert load_student(tmp_path / "new").spec == written(contract("lcm", plan_power=1.0, steps=2))


@pytest.mark.parametrize(
    ("spec", "arguments", "code"),
    [
        (contract("progressive"), {"power": 2.0}, "plan-fixed"),
        (contract("dmd2"), {"power": 2.0}, "plan-fixed"),
        (RECIPES["grid25-teacher"]().spec, {"power": 2.0}, "plan-fixed"),
        (dataclasses.replace(contract("lcm"), provenance={"method": "lcm"}), {"power": 2.0}, "plan-fixed"),
        (contract("lcm"), {}, "setting-invalid"),
        (contract("lcm"), {"power": 0.0}, "setting-invalid"),
        (contract("lcm"), {"power": float("nan")}, "setting-invalid"),
        (contract("lcm"), {"power": float("inf")}, "setting-invalid"),
        (contract("lcm"), {"power": 300.0}, "setting-invalid"),
        (contract("lcm"), {"steps": 0}, "steps-out-of-range"),
        (contract("lcm"), {"steps": 2000}, "steps-out-of-range"),
    ],
)
def test_refusals(tmp_path, spec, arguments, code):
    old = save(tmp_path / "old", spec)
    with pytest.raises(UsageError) as caught:
        replan(old, tmp_path / "new", **arguments)
    assert caught.value.code == code
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_the_command(tmp_path, capsys):
    old = save(tmp_path / "old", contract("lcm", plan_power=1.0))
    words = ["replan", str(old), "--power", "2", "--out", str(tmp_path / "new")]
    assert main(words) == 0
    assert "1, 0.5625, 0.25, 0.0625" in " ".join(capsys.readouterr().out.split())
    assert main(words) == 2, "it is there already"
    assert main([*words, "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"]["2"] == [1.0, 0.25]
    assert load_student(tmp_path / "new").spec == written(contract("lcm", plan_power=2.0))


def test_a_damaged_student(tmp_path):
    old = save(tmp_path / "old", contract("lcm"))
    (old / "network0.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="has 0 bytes"):
        replan(old, tmp_path / "new", power=2.0)
