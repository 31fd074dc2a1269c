"""From a recipe to a teacher and from a teacher to a student, on directories: what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from short_runs import BRIEF, CASES, GUIDED_AS_TEACHER, STEPS, TEACHERS, UNGUIDED, UNTRAINED, distill_case, only

from distill_rt.models import load_student
from distill_rt.training.methods import METHODS
from distill_rt.training.recipes import RECIPES
from distill_rt.training.run import distill
from distill_rt.training.sampling import sample


@pytest.mark.parametrize("name", sorted(TEACHERS))
def test_a_teacher_is_a_student_directory(teachers, name):
    teacher = load_student(teachers[name])
    recipe = RECIPES[f"{name}-teacher"]()
    assert teacher.spec.plans.keys() == recipe.spec.plans.keys()
    assert {key: teacher.spec.provenance[key] for key in ("method", "data", "seed", "teacher")} == {
        "method": "denoising",
        "data": name,
        "seed": 0,
        "teacher": None,
    }
    assert teacher.spec.provenance["settings"]["steps"] == int(TEACHERS[name])
    assert set(teacher.spec.provenance["versions"]) == {"distill-rt", "torch", "diffusers"}
    losses = teacher.spec.provenance["losses"]
    assert [step for step, _ in losses] == list(range(int(TEACHERS[name])))
    check_samples(teachers[name])


def check_samples(path: Path) -> None:
    """Every plan gives finite images, the same again for the same seeds."""
    student = load_student(path)
    labels = list(range(5)) if student.spec.condition.kind == "label" else None
    for num_steps, table in student.spec.plans.items():
        if num_steps <= 8:
            images = [
                sample(student.spec, student.networks, range(5), table=table, labels=labels, batch_size=size)
                for size in (5, 5, 2)
            ]
            assert images[0].shape == (5, *student.spec.sample_shape)
            assert torch.isfinite(images[0]).all()
            assert torch.equal(images[0], images[1])
            torch.testing.assert_close(images[0], images[2], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("method", "data"), CASES)
def test_every_method_makes_a_student_that_samples(teachers, method, data, out):
    seen = []
    made = distill_case(method, teachers[data], out, progress=lambda *arguments: seen.append(arguments))
    student, teacher = load_student(out), load_student(teachers[data])
    assert only(out)
    json.dumps(made, allow_nan=False)
    assert made["path"] == str(out)
    assert made["digest"] == student.digest
    assert made["method"] == method
    assert made["steps"] == list(student.spec.steps)
    steps = [] if method in UNTRAINED else seen  # a search tells of itself
    assert made["training_steps"] == len(steps)
    assert made["num_parameters"] == sum(value.numel() for value in student.networks[0].parameters())
    if made["training_steps"]:
        assert made["final_loss"] == pytest.approx(student.spec.provenance["losses"][-1][1], rel=1e-5)
    else:
        assert method in UNTRAINED
        assert made["final_loss"] is None
    assert student.spec.default_steps == STEPS.get(method, 2)
    assert made["flops_per_evaluation"] > made["num_parameters"]
    assert student.spec.provenance["teacher"] == teacher.digest
    assert student.spec.provenance["data"] == data
    assert student.spec.condition == teacher.spec.condition
    guided = "none" if method in UNGUIDED else "cfg" if method in GUIDED_AS_TEACHER else "embedded"
    assert student.spec.guidance.mode == (guided if teacher.spec.guidance.mode == "cfg" else "none")
    check_samples(out)
    # A student is a student: nothing of training but its record is in it.
    assert sorted(file.name for file in out.iterdir()) == ["network0.safetensors", "student.json"]


def test_first_weights_of_a_student_of_data_alone(teachers, tmp_path):
    """Fresh ones are the seed's; the teacher's need not be near to them."""
    settings = {**BRIEF, "iterations": "1", "peak_learning_rate": "1e-9", "ema_decay": "0"}

    def weights(name, seed, **more):
        distill("consistency_training", teachers["grid25"], tmp_path / name, settings=settings | more, seed=seed)
        return next(load_student(tmp_path / name).networks[0].parameters())

    of_teacher = next(load_student(teachers["grid25"]).networks[0].parameters())
    taken = weights("taken", 0)
    fresh, again, other = (weights(f"fresh{i}", seed, first_weights="fresh") for i, seed in enumerate((0, 0, 1)))
    torch.testing.assert_close(taken, of_teacher, rtol=0, atol=1e-6)
    assert torch.equal(fresh, again)
    assert not torch.allclose(fresh, other, atol=1e-3)
    assert not torch.allclose(fresh, of_teacher, atol=1e-3)


def test_a_student_of_a_student(teachers, out, tmp_path):
    """Its guidance is an input already."""
    distill_case("guidance", teachers["grid25-labelled"], tmp_path / "first")
    distill_case("progressive", tmp_path / "first", out)
    spec = load_student(out).spec
    assert spec.guidance.mode == "embedded"
    assert [phase for phase, *_ in _phases("progressive", tmp_path / "first")] == ["8 steps", "4 steps", "2 steps"]


def _phases(method: str, teacher: Path) -> list[tuple[str, int]]:
    chosen = METHODS[method](steps=2, start_steps=16)  # type: ignore[call-arg]
    return [(phase.name, phase.iterations) for phase in chosen.phases(load_student(teacher).spec)]


@pytest.mark.parametrize("method", sorted(METHODS))
def test_equal_runs_have_equal_digests(teachers, method, tmp_path):
    made = [
        distill_case(method, teachers["grid25-labelled"], tmp_path / f"{i}", seed=seed)["digest"]
        for i, seed in enumerate((0, 0, 2**64 - 1))
    ]
    assert made[0] == made[1]
    assert made[0] != made[2]
