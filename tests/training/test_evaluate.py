"""Evaluation of a student directory: what it reports, and what it refuses before it samples anything."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import MixtureTeacher

from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.core.guidance import combine_guidance
from distill_rt.core.spec import StudentSpec
from distill_rt.models import build_network, load_student, save_student
from distill_rt.training import evaluate as module
from distill_rt.training.evaluate import MAX_SAMPLES, evaluate, open_bench, scale_of
from distill_rt.training.methods import METHODS
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.quality.bench import FLOOR_SEEDS, FRESH_SEEDS, QualityBench
from distill_rt.training.recipes import RECIPES
from distill_rt.training.sampling import raw_output
from distill_rt.training.student import student_network


def save(path: Path, spec: StudentSpec, network: torch.nn.Module) -> Path:
    save_student(path, spec, [network])
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers with fresh weights, and students that start from them: evaluation asks for no quality."""
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("evaluate")
    for name in ("grid25", "grid25-labelled", "digits"):
        spec = dataclasses.replace(RECIPES[f"{name}-teacher"]().spec, provenance={"data": name})
        network = build_network(spec.networks[0])
        save(root / name, spec, network)
        contract = dataclasses.replace(METHODS["consistency"](steps=2).contract(spec), provenance={"data": name})
        save(root / f"{name}-student", contract, student_network(Teacher(spec, network), contract))
    return root


@pytest.fixture
def _no_sampling(monkeypatch):
    """Whoever is refused is refused at once."""

    def refuse(*_arguments, **_options):
        raise AssertionError("samples were drawn for an evaluation that cannot be")

    monkeypatch.setattr(module, "QualityBench", refuse)


def test_a_report_is_json_with_a_row_per_number_of_steps(root):
    seen: list[Any] = []
    report = evaluate(
        root / "grid25-student", root / "grid25", num_samples=200, progress=lambda *arguments: seen.append(arguments)
    )
    json.dumps(report, allow_nan=False)
    assert [row["steps"] for row in report["rows"]] == [1, 2]
    assert [row["nfe"] for row in report["rows"]] == [1, 2]
    assert seen == [("1 steps", 0, 2), ("2 steps", 1, 2)]
    for row in report["rows"]:
        assert row["passed"] == (row["failures"] == {})
        assert {"teacher ddim", "teacher dpm++2m", "teacher re-noise", "gaussian fit", "untrained student"} == set(
            row["baselines"]
        )
        assert not row["passed"], "a student that was never trained is a control"
    assert (report["num_samples"], report["seed"], report["guidance"]) == (200, 0, 1.0)


@pytest.mark.parametrize(
    ("method", "settings", "scale"),
    [("ect", {}, 1.0), ("imm", {}, 1.0), ("scm", {"source": "data"}, 1.0), ("scm", {}, 2.0), ("dice", {"w": 1.5}, 1.5)],
)
def test_the_scale_that_a_student_stands_for(root, method, settings, scale):
    """A student of data alone is not a bad copy of a guided teacher, and one with a scale inside is a copy at that scale."""
    teacher = load_student(root / "grid25-labelled")
    spec = METHODS[method](**settings).contract(teacher.spec)
    assert scale_of(dataclasses.replace(teacher, spec=spec), teacher) == scale


def test_a_student_of_data_alone_is_held_against_its_teacher_without_guidance(root, tmp_path):
    loaded = load_student(root / "grid25-labelled")
    network, generator = loaded.networks[0], torch.Generator().manual_seed(1)
    with torch.no_grad():  # fresh weights answer zero, at any scale
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    teacher = save(tmp_path / "teacher", loaded.spec, network)
    spec = METHODS["ect"](steps=1).contract(loaded.spec)
    student = save(tmp_path / "student", spec, student_network(Teacher(loaded.spec, network), spec))
    scales = (None, 1.0, loaded.spec.guidance.default)
    report, same, other = (evaluate(student, teacher, num_samples=200, guidance=w) for w in scales)
    assert report == same
    assert (report["guidance"], other["guidance"]) == (1.0, 2.0)
    assert other["rows"][0]["swd"] != report["rows"][0]["swd"]


@pytest.mark.usefixtures("_no_sampling")
@pytest.mark.parametrize(
    ("student", "teacher", "arguments", "error", "code"),
    [
        ("absent", "grid25", {}, ArtifactError, "artifact-missing"),
        ("grid25-student", "absent", {}, ArtifactError, "artifact-missing"),
        ("grid25-student", "grid25", {"nfe": [7]}, UsageError, "steps-not-in-contract"),
        ("grid25-student", "grid25", {"nfe": [1, 0]}, UsageError, "steps-not-in-contract"),
        ("grid25-student", "grid25", {"nfe": [True]}, UsageError, "steps-not-in-contract"),
        ("grid25-student", "grid25", {"guidance": 2.0}, UsageError, "guidance-not-in-contract"),
        ("grid25-labelled-student", "grid25-labelled", {"guidance": 9.0}, UsageError, "guidance-not-in-contract"),
        ("grid25-labelled-student", "grid25-labelled", {"guidance": math.nan}, UsageError, "guidance-not-in-contract"),
        ("grid25-student", "grid25-labelled", {}, UsageError, "teacher-mismatch"),
        ("grid25-student", "digits", {}, UsageError, "teacher-mismatch"),
        ("grid25-student", "grid25", {"num_samples": 199}, UsageError, "num-samples-out-of-range"),
        ("grid25-student", "grid25", {"num_samples": MAX_SAMPLES + 1}, UsageError, "num-samples-out-of-range"),
        ("grid25-student", "grid25", {"seed": -1}, UsageError, "seed-out-of-range"),
        ("grid25-student", "grid25", {"seed": 2**32}, UsageError, "seed-out-of-range"),
    ],
)
def test_refusals(root, student, teacher, arguments, error, code):
    with pytest.raises(error) as caught:
        evaluate(root / student, root / teacher, **{"num_samples": 300, **arguments})
    assert caught.value.code == code
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("provenance", [{}, {"data": 3}])
def test_a_teacher_that_does_not_say_its_data_is_the_only_yardstick(root, tmp_path, provenance):
    """As an imported one, and judged as images of one's own are: what needs the data (modes) is not measured."""
    loaded = load_student(root / "grid25")
    save(tmp_path / "other", dataclasses.replace(loaded.spec, provenance=provenance), loaded.networks[0])
    known, unknown = (
        evaluate(root / "grid25-student", teacher, nfe=[1], num_samples=200)["rows"][0]
        for teacher in (root / "grid25", tmp_path / "other")
    )
    needs_data = ("modes", "on_modes")
    assert all(known[name] is not None and unknown[name] is None for name in needs_data)
    assert {k for k in known if known[k] != unknown[k]} == {*needs_data, "failures", "floor", "baselines"}
    assert not unknown["passed"], "a student that was never trained is a control"


@pytest.mark.usefixtures("_no_sampling")
def test_a_damaged_student(root, tmp_path):
    shutil.copytree(root / "grid25-student", tmp_path / "student")
    (tmp_path / "student" / "network0.safetensors").write_bytes(b"")
    with pytest.raises(ArtifactError, match="has 0 bytes"):
        evaluate(tmp_path / "student", root / "grid25")


def test_sample_sets_share_no_noise(root):
    """Students, the fresh set and the floor must not meet, at the largest seed either."""
    for seed in (0, FRESH_SEEDS // 300 - 1):
        bench = open_bench(load_student(root / "grid25"), num_samples=300, guidance=None, seed=seed)
        assert len(set(bench.seeds.tolist())) == 300
        assert int(bench.seeds.max()) < FRESH_SEEDS
        assert FRESH_SEEDS + int(bench.seeds.max()) < FLOOR_SEEDS


def test_denoising_energy_of_an_exact_teacher(mixture_student):
    """On its modes the exact denoiser moves a point by at most the posterior's pull; a blur is far above, a mean far below."""
    from distill_rt.training.data import Grid25
    from distill_rt.training.draws import Draws

    bench = QualityBench(mixture_student, Grid25(), num_samples=200)
    real = Grid25().batch(Draws(0, 0, 500)).x0_BCHW
    centres = MixtureTeacher().centres_M2[:, :, None, None]
    on, off, at = (bench.denoising_energy(x, None) for x in (real, real + 0.3, centres))
    # By the posterior mean at sigma/alpha = 0.2 a point moves by 0.2^2 / (0.2^2 + 0.049^2) of its distance to its mode.
    pull = 0.2**2 / (0.2**2 + Grid25.mode_std**2)
    assert on == pytest.approx((pull * Grid25.mode_std / 0.2) ** 2, rel=0.2)
    assert off > 10 * on
    assert at < 1e-3


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_by_two_evaluations_is_the_runtimes(root, rescale):
    """The same formula as `combine_guidance`, rescaling included: nothing of the contract is dropped."""
    loaded = load_student(root / "grid25-labelled")
    network = loaded.networks[0]
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    spec = dataclasses.replace(loaded.spec, guidance=dataclasses.replace(loaded.spec.guidance, rescale=rescale))
    x, time, label = torch.randn(3, 2, 1, 1), torch.full((3,), 500.0), torch.tensor([0, 1, 4])
    w = torch.tensor([1.0, 2.0, 3.0])
    with torch.no_grad():
        out = raw_output(spec, network, x, [time], Conditions(label_B=label, w_B=w))
        F_u, F_c = (network(x, time, value).numpy() for value in (torch.full((3,), 5), label))
    expected = combine_guidance(F_u, F_c, w.numpy(), rescale=rescale)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-3, atol=1e-5)
