"""What cannot be trained is refused by one line, and leaves nothing."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
from short_runs import NEED_GUIDANCE, distill_case, refused

from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.models import load_student, save_student
from distill_rt.training.methods import METHODS
from distill_rt.training.run import distill, train


@pytest.mark.parametrize("recipe", ["grid25", "", "GRID25-TEACHER"])
def test_an_unknown_recipe_lists_those_that_exist(out, recipe):
    with pytest.raises(UsageError) as caught:
        train(recipe, out)
    refused(caught, "recipe-unknown", "digits-teacher, grid25-labelled-teacher, grid25-teacher", out.parent, set())


@pytest.mark.parametrize("method", ["denoising", "", "Progressive"])
def test_an_unknown_method_lists_those_that_exist(teachers, out, method):
    with pytest.raises(UsageError) as caught:
        distill(method, teachers["grid25"], out)
    refused(caught, "method-unknown", ", ".join(sorted(METHODS)), out.parent, set())


@pytest.mark.parametrize(
    ("settings", "code", "said"),
    [
        ({"learning": "1"}, "setting-unknown", "settings: steps, batch_size"),
        ({"steps": "many"}, "setting-invalid", "an integer"),
        ({"steps": "0"}, "setting-invalid", "no step at all"),
        ({"steps": "-5"}, "setting-invalid", "no step at all"),
        ({"batch_size": "0"}, "setting-invalid", "batch_size must be at least 1"),
        ({"ema_decay": "1.5"}, "setting-invalid", "ema_decay must be in [0, 1)"),
        ({"peak_learning_rate": "-1"}, "setting-invalid", "a learning rate must be"),
        ({"peak_learning_rate": "nan"}, "setting-invalid", "a finite number"),
    ],
)
def test_settings_that_cannot_be(out, settings, code, said):
    with pytest.raises(UsageError) as caught:
        train("grid25-teacher", out, settings=settings)
    refused(caught, code, said, out.parent, set())


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_cannot_be(out, seed):
    with pytest.raises(UsageError) as caught:
        train("grid25-teacher", out, seed=seed)
    refused(caught, "seed-out-of-range", "0 to 2**64 - 1", out.parent, set())


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("steps", [0, -4, 10**9])
def test_numbers_of_steps_that_cannot_be(teachers, out, method, steps):
    with pytest.raises(UsageError) as caught:
        distill(method, teachers["grid25-labelled"], out, steps=steps)
    refused(caught, "steps-out-of-range", "steps must be 1 to 1024", out.parent, set())


def test_steps_are_said_once(teachers, out):
    """--steps 4 --set steps=2 would drop one of the two silently."""
    with pytest.raises(UsageError) as caught:
        distill("consistency", teachers["grid25"], out, steps=4, settings={"steps": "2"})
    refused(caught, "setting-unknown", "--steps", out.parent, set())


@pytest.mark.parametrize("method", NEED_GUIDANCE)
def test_guidance_needs_a_guided_teacher(teachers, out, method):
    with pytest.raises(UsageError) as caught:
        distill_case(method, teachers["grid25"], out)
    refused(caught, "teacher-not-guided", "guided by two evaluations", out.parent, set())


def test_a_student_of_few_steps_is_no_teacher_of_many(teachers, out, tmp_path):
    distill_case("kd", teachers["grid25"], tmp_path / "kd")
    for method in ("progressive", "bespoke", "dmd"):
        with pytest.raises(UsageError) as caught:
            distill_case(method, tmp_path / "kd", out)
        refused(caught, "teacher-not-denoising", "made by kd", out.parent, {"kd"})
    distill("feature_kd", tmp_path / "kd", out, settings={"iterations": "2", "batch_size": "8"})


@pytest.mark.parametrize(
    ("method", "teacher", "settings"),
    [
        ("progressive", "grid25", {"last_iterations": "0"}),
        ("progressive", "grid25", {"stage_iterations": "-1"}),
        ("progressive", "grid25-labelled", {"guidance_iterations": "0"}),
        ("tract", "grid25", {"iterations": "-3"}),
        ("tract", "grid25", {"first_iterations": "0"}),
        ("tract", "grid25-labelled", {"guidance_iterations": "0"}),
        ("rectified_flow", "grid25", {"iterations": "0", "distill_iterations": "5"}),
        ("rectified_flow", "grid25", {"distill_iterations": "-1"}),
    ],
)
def test_stages_that_would_not_train(teachers, out, method, teacher, settings):
    with pytest.raises(UsageError) as caught:
        distill_case(method, teachers[teacher], out, settings=settings)
    refused(caught, "setting-invalid", next(iter(settings)), out.parent, set())


@pytest.mark.parametrize(
    ("method", "options", "code"),
    [("kd", {"accumulate": 3}, "batch-not-divisible"), ("dmd", {"parallel": "fsdp"}, "parallel-invalid")],
)
def test_a_dry_run_refuses_what_the_run_would(teachers, out, method, options, code):
    for dry_run in (True, False):
        with pytest.raises(UsageError) as caught:
            distill_case(method, teachers["grid25"], out, dry_run=dry_run, **options)
        assert caught.value.code == code
        assert not list(out.parent.iterdir())


def test_a_teacher_that_is_none(teachers, out, tmp_path):
    with pytest.raises(ArtifactError) as caught:
        distill_case("consistency", tmp_path / "absent", out)
    refused(caught, "artifact-missing", "does not exist", out.parent, set())
    shutil.copytree(teachers["grid25"], tmp_path / "damaged")
    with open(tmp_path / "damaged" / "network0.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    with pytest.raises(ArtifactError) as caught:
        distill_case("consistency", tmp_path / "damaged", out)
    refused(caught, "artifact-damaged", "has changed", out.parent, {"damaged"})


@pytest.mark.parametrize(
    ("provenance", "error", "code"),
    [
        ({}, ArtifactError, "teacher-without-data"),
        ({"data": 3}, ArtifactError, "teacher-without-data"),
        ({"data": "imagenet"}, UsageError, "dataset-unknown"),
    ],
)
def test_a_teacher_of_unknown_data(teachers, out, tmp_path, provenance, error, code):
    loaded = load_student(teachers["grid25"])
    spec = dataclasses.replace(loaded.spec, provenance=provenance)
    save_student(tmp_path / "other", spec, loaded.networks)
    with pytest.raises(error) as caught:
        distill_case("consistency", tmp_path / "other", out)
    refused(caught, code, "", out.parent, {"other"})


def test_a_teacher_that_rescales(teachers, out, tmp_path):
    loaded = load_student(teachers["grid25-labelled"])
    spec = dataclasses.replace(loaded.spec, guidance=dataclasses.replace(loaded.spec.guidance, rescale=0.7))
    save_student(tmp_path / "other", spec, loaded.networks)
    with pytest.raises(UsageError) as caught:
        distill_case("consistency", tmp_path / "other", out)
    refused(caught, "teacher-rescales", "rescales its guidance", out.parent, {"other"})
