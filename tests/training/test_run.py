"""From a recipe to a teacher and from a teacher to a student, on directories: results, refusals, and runs that are killed."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from distill_rt.core.errors import ArtifactError, ResourceError, UsageError
from distill_rt.models import load_student, save_student
from distill_rt.training.methods import METHODS
from distill_rt.training.recipes import RECIPES
from distill_rt.training.run import distill, train
from distill_rt.training.sampling import sample

TEACHERS = {"grid25": "40", "grid25-labelled": "40", "digits": "4"}
TEACHER_SETTINGS = {"batch_size": "16", "warmup": "5", "peak_learning_rate": "0.001"}
SETTINGS = {
    "progressive": {"guidance_iterations": "4", "stage_iterations": "4", "last_iterations": "5", "batch_size": "16"},
    "rcfd": {
        "classifier_iterations": "3",
        "guidance_iterations": "3",
        "stage_iterations": "3",
        "last_iterations": "4",
        "batch_size": "16",
    },
    "guidance": {"iterations": "8", "batch_size": "16"},
    "feature_kd": {"iterations": "9", "batch_size": "16", "width": "0.5", "blocks": "base"},
    "kd": {"iterations": "9", "batch_size": "16", "num_pairs": "40", "teacher_steps": "2"},
    "tract": {"guidance_iterations": "3", "first_iterations": "4", "iterations": "4", "batch_size": "16"},
    "dmd": {"iterations": "9", "batch_size": "16", "num_pairs": "40", "teacher_steps": "2"},
    "gits": {"intervals": "6", "batch_size": "16"},
    "bespoke": {"intervals": "6", "batch_size": "16"},
    "rectified_flow": {"iterations": "5", "times": "2", "batch_size": "16", "num_pairs": "40", "ode_steps": "2"},
}
BRIEF = {"iterations": "9", "batch_size": "16"}
"""Settings of the methods that are not named above."""
STEPS = {"feature_kd": 4, "bk_sdm": 4, "kd": 1, "boot": 1, "dmd": 1, "vsd": 1, "sid": 1}
"""Of the student, 2 otherwise: a smaller network keeps one of its teacher's plans, a generator has one step."""
UNGUIDED = ("consistency_training", "ect", "imm", "dice")
"""Their students offer no guidance: they learn from data alone, or one scale is baked in."""
NEED_GUIDANCE = ("guidance", "dice")
"""They distil nothing else."""
UNTRAINED = ("bespoke", "gits")
"""They search."""
GUIDED_AS_TEACHER = ("bespoke", "bk_sdm", "feature_kd", "gits")
"""A smaller network and a teacher with another table."""
CASES = [
    ("progressive", "grid25"),
    ("progressive", "grid25-labelled"),
    ("progressive", "digits"),
    ("consistency", "grid25"),
    ("consistency", "grid25-labelled"),
    ("guidance", "grid25-labelled"),
    *((method, "grid25") for method in sorted(set(METHODS) - {"progressive", "consistency", "rcfd", *NEED_GUIDANCE})),
    *((method, "grid25-labelled") for method in sorted(set(METHODS) - {"progressive", "consistency", "guidance"})),
    ("feature_kd", "digits"),
]


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Hardly trained ones: right in everything but quality."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("teachers")
    for name, steps in TEACHERS.items():
        train(f"{name}-teacher", root / name, settings={"steps": steps, **TEACHER_SETTINGS})
    return {name: root / name for name in TEACHERS}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "student"


def distill_case(method: str, teacher: Path, out: Path, **arguments: Any) -> dict[str, Any]:
    settings = {**SETTINGS.get(method, BRIEF), **arguments.pop("settings", {})}
    return distill(method, teacher, out, steps=STEPS.get(method, 2), settings=settings, **arguments)


class Stop(BaseException):
    """The end of a process, as far as the trainer can tell."""


def stop_at(step: int):
    def progress(phase, done, total, loss):
        if done == step:
            raise Stop

    return progress


def only(out: Path) -> bool:
    return list(out.parent.iterdir()) == [out]


# -- what comes out -------------------------------------------------------------------------------------------------------


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
    distill_case("consistency", teachers["grid25-labelled"], tmp_path / "first")
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


# -- stopping and going on ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_run_that_stops_anywhere_ends_with_the_same_digest(teachers, method, tmp_path):
    """For progressive: before, at and after a change of phase, with the stage's teacher in the checkpoint; for consistency
    with the average that gives the targets."""
    teacher = teachers["grid25-labelled"]
    whole = distill_case(method, teacher, tmp_path / "whole")
    for step in (2, 5, 7, 13, 17):
        if step > whole["training_steps"]:
            break
        out = tmp_path / f"{step}"
        with pytest.raises(Stop):
            distill_case(method, teacher, out, checkpoint_every=2, progress=stop_at(step))
        assert not out.exists()
        made = distill_case(method, teacher, out, resume=True, checkpoint_every=2)
        assert made["digest"] == whole["digest"], f"stopped at {step}"
        assert not (tmp_path / f"{step}.checkpoint").exists()


def test_a_convolutional_run_that_stops_ends_with_the_same_digest(teachers, tmp_path):
    """Its weights are channels-last and its optimiser is fused: moments in another memory format would hit other weights."""
    settings = {"steps": TEACHERS["digits"], **TEACHER_SETTINGS}
    with pytest.raises(Stop):
        train("digits-teacher", tmp_path / "t", settings=settings, checkpoint_every=1, progress=stop_at(3))
    made = train("digits-teacher", tmp_path / "t", settings=settings, resume=True)
    assert made["digest"] == load_student(teachers["digits"]).digest


KILLED = """
import json, os, random, signal, sys, time
from pathlib import Path
import diffusers.models.embeddings  # which every child would import anew
import torch
torch.set_num_threads(1)
from distill_rt.training.run import distill, train

root, jobs, kills = Path(sys.argv[1]), json.loads(sys.argv[2]), int(sys.argv[3])
random.seed(int(sys.argv[4]))

def walk(progress):
    for name, method, teacher, steps, settings in jobs:
        if not (root / name).exists():
            options = dict(settings=settings, resume=True, checkpoint_every=3, progress=progress)
            if teacher is None:
                train(method, root / name, **options)
            else:
                distill(method, root / teacher, root / name, steps=steps, **options)

while True:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            walk(lambda *arguments: os.write(writer, b"."))
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    if kills > 0:
        os.read(reader, 1)
        for _ in range(random.randint(0, 12)):
            os.read(reader, 1)  # some steps later, and then
        time.sleep(0.01 * random.random())  # somewhere within a step or a checkpoint
        os.kill(child, signal.SIGKILL)
        kills -= 1
    while os.read(reader, 4096):
        pass
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        sys.exit(os.WEXITSTATUS(status))
    print("killed", flush=True)
"""


def test_runs_that_are_killed_at_random_end_with_the_same_digests(tmp_path):
    """SIGKILL, again and again, on a walk from the data to four students; every process goes on where the last one was."""
    jobs = [
        ("teacher", "grid25-labelled-teacher", None, 0, {"steps": "40", "batch_size": "32"}),
        *((method, method, "teacher", STEPS.get(method, 2), SETTINGS[method]) for method in SETTINGS),
    ]
    expected = {}
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for name, method, teacher, steps, settings in jobs:
        if teacher is None:
            made = train(method, whole / name, settings=settings)
        else:
            made = distill(method, whole / teacher, whole / name, steps=steps, settings=settings)
        expected[name] = made["digest"]
    killed.mkdir()
    kills, seed = 8, random.randrange(2**32)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(killed), json.dumps(jobs), str(kills), str(seed)],
        env={**os.environ, "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed") >= 2, done.stdout
    assert {name: load_student(killed / name).digest for name in expected} == expected, f"seed {seed}"
    assert {path.name for path in killed.iterdir() if path.suffix != ".partial"} == set(expected)


# -- refusals leave nothing -----------------------------------------------------------------------------------------------


def refused(error: pytest.ExceptionInfo[Any], code: str, said: str, place: Path, left: set[str]) -> None:
    assert error.value.code == code
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert {path.name for path in place.iterdir()} == left


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


def tiny(out: Path, **arguments: Any) -> dict[str, Any]:
    settings = {"steps": "6", "batch_size": "8", **arguments.pop("settings", {})}
    return train("grid25-teacher", out, settings=settings, **arguments)


def test_an_existing_output_needs_force(out):
    first = tiny(out)["digest"]
    with pytest.raises(UsageError) as caught:
        tiny(out, seed=1)
    refused(caught, "output-exists", "--force", out.parent, {"student"})
    assert load_student(out).digest == first
    assert tiny(out, seed=1, force=True)["digest"] != first
    assert only(out)


def test_force_spares_what_is_not_ours(out):
    out.mkdir()
    (out / "photo.jpg").write_text("mine")
    with pytest.raises(UsageError) as caught:
        tiny(out, force=True)
    refused(caught, "output-not-ours", "not ours", out.parent, {"student"})
    shutil.rmtree(out)
    checkpoint = out.with_name("student.checkpoint")
    checkpoint.mkdir()
    (checkpoint / "photo.jpg").write_text("mine")
    for resume in (False, True):
        with pytest.raises(UsageError) as caught:
            tiny(out, force=True, resume=resume)
        refused(caught, "output-not-ours", "not ours", out.parent, {"student.checkpoint"})
    shutil.rmtree(checkpoint)
    checkpoint.symlink_to(out.parent)
    with pytest.raises(UsageError) as caught:
        tiny(out, force=True)
    refused(caught, "output-not-a-directory", "is a link", out.parent, {"student.checkpoint"})


def test_an_unfinished_run_needs_resume_or_force(out):
    with pytest.raises(Stop):
        tiny(out, checkpoint_every=2, progress=stop_at(5))
    with pytest.raises(UsageError) as caught:
        tiny(out)
    refused(caught, "checkpoint-exists", "--resume", out.parent, {"student.checkpoint"})
    whole = tiny(out.with_name("whole"))["digest"]
    seen: list[int] = []
    assert tiny(out, force=True, progress=lambda name, done, *_: seen.append(done))["digest"] == whole
    assert seen[0] == 1
    assert not out.with_name("student.checkpoint").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 1}, "seed is 0 there and 1 now"),
        ({"settings": {"steps": "7"}}, "settings.steps is 6 there and 7 now"),
        ({"settings": {"peak_learning_rate": "0.5"}}, "settings.peak_learning_rate is 0.002 there and 0.5 now"),
    ],
)
def test_a_checkpoint_of_another_configuration(out, change, said):
    with pytest.raises(Stop):
        tiny(out, checkpoint_every=2, progress=stop_at(5))
    with pytest.raises(ArtifactError) as caught:
        tiny(out, resume=True, **change)
    refused(caught, "checkpoint-config", said, out.parent, {"student.checkpoint"})
    tiny(out, resume=True)
    assert only(out)


def test_a_checkpoint_of_another_teacher_or_method(teachers, out, tmp_path):
    with pytest.raises(Stop):
        distill_case("consistency", teachers["grid25"], out, checkpoint_every=2, progress=stop_at(5))
    with pytest.raises(ArtifactError, match="belongs to another configuration: contract"):
        distill_case("progressive", teachers["grid25"], out, resume=True)
    tiny(tmp_path / "other", seed=9)
    with pytest.raises(ArtifactError, match="belongs to another configuration: teacher"):
        distill_case("consistency", tmp_path / "other", out, resume=True)


def test_a_damaged_checkpoint(out):
    with pytest.raises(Stop):
        tiny(out, checkpoint_every=2, progress=stop_at(5))
    (out.with_name("student.checkpoint") / "checkpoint.json").write_text("{")
    with pytest.raises(ArtifactError) as caught:
        tiny(out, resume=True)
    refused(caught, "checkpoint-damaged", "--force", out.parent, {"student.checkpoint"})
    tiny(out, force=True)
    assert only(out)


def test_divergence_leaves_nothing(out):
    with pytest.raises(ResourceError) as caught:
        tiny(out, checkpoint_every=1, settings={"peak_learning_rate": "1e30", "warmup": "0"})
    refused(caught, "loss-not-finite", "lower the learning rate", out.parent, set())


def test_a_directory_that_cannot_be_written_is_found_before_training(out, monkeypatch):
    def refuse(*_arguments, **_options):
        raise OSError(errno.EROFS, "Read-only file system")

    seen: list[Any] = []
    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(ResourceError) as caught:
        tiny(out, progress=lambda *arguments: seen.append(arguments))
    refused(caught, "not-writable", "read-only", out.parent, set())
    assert not seen
    monkeypatch.undo()
    (out.parent / "file").write_text("mine")
    with pytest.raises(ResourceError) as caught:
        tiny(out.parent / "file" / "student", progress=lambda *arguments: seen.append(arguments))
    refused(caught, "not-writable", "is a file", out.parent, {"file"})
    assert not seen


def test_a_disk_that_fills_up_at_the_end_keeps_the_checkpoint(out, monkeypatch):
    from distill_rt.models import student

    def refuse(*_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(student, "write_file", refuse)
    with pytest.raises(ResourceError) as caught:
        tiny(out, checkpoint_every=2)
    refused(caught, "disk-full", "free some space", out.parent, {"student.checkpoint"})
    monkeypatch.undo()
    assert tiny(out, resume=True)["digest"] == tiny(out.with_name("whole"))["digest"]
