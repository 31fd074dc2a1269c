"""Kept weights and their linear combination: what is kept, what the search finds, and what it says about other noise."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill_rt.cli.main import main
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.models import load_student
from distill_rt.training.combine import EMA_DECAYS, Mixture, combine, first_combinations, search
from distill_rt.training.evaluate import claims_pairing
from distill_rt.training.run import distill, train

SETTINGS = {"guidance_iterations": "0", "stage_iterations": "4", "last_iterations": "12", "start_steps": "8"}
SMALL: dict[str, Any] = {"num_samples": 40, "generations": 2, "population": 4}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a 2-step student with four kept weights, hardly trained."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("combine")
    train("grid25-teacher", root / "teacher", settings={"steps": "40", "batch_size": "32"})
    settings = {**SETTINGS, "batch_size": "16"}
    distill("progressive", root / "teacher", root / "student", steps=2, settings=settings, keep_every=5)
    return root


def test_the_last_phase_is_kept_and_its_end(root: Path) -> None:
    files = sorted(file.name for file in (root / "student.weights").iterdir())
    assert files == [*(f"step-{step:07d}.safetensors" for step in (5, 10, 15, 16)), "weights.json"]
    last = load_file(root / "student.weights" / files[3])
    student = load_student(root / "student").networks[0].state_dict()  # of a method without an average
    assert all(torch.equal(last[name], value) for name, value in student.items())


def test_keeping_changes_nothing_and_survives_a_stop(root: Path, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def stop(phase: str, done: int, total: int, loss: float) -> None:
        if done == 12:
            raise Stop

    settings: dict[str, Any] = {"steps": 2, "settings": {**SETTINGS, "batch_size": "16"}}
    plain = distill("progressive", root / "teacher", tmp_path / "plain", **settings)
    assert plain["digest"] == load_student(root / "student").digest
    with pytest.raises(Stop):
        distill(
            "progressive", root / "teacher", tmp_path / "s", keep_every=5, checkpoint_every=4, progress=stop, **settings
        )
    distill("progressive", root / "teacher", tmp_path / "s", keep_every=5, resume=True, **settings)
    for file in (root / "student.weights").iterdir():
        assert (tmp_path / "s.weights" / file.name).read_bytes() == file.read_bytes()
    assert not (tmp_path / "plain.weights").exists()


def test_weights_that_stand_there(root: Path, tmp_path: Path) -> None:
    (tmp_path / "s.weights").mkdir()
    (tmp_path / "s.weights" / "diary.txt").write_text("mine")
    settings: dict[str, Any] = {"steps": 2, "settings": {**SETTINGS, "batch_size": "16"}}
    with pytest.raises(UsageError, match="not ours"):
        distill("progressive", root / "teacher", tmp_path / "s", keep_every=5, **settings)
    with pytest.raises(UsageError, match="keep_every"):
        distill("progressive", root / "teacher", tmp_path / "s", keep_every=-1, **settings)
    shutil.copytree(root / "student.weights", tmp_path / "t.weights")
    (tmp_path / "t.weights" / "step-0000099.safetensors").write_bytes(b"of a run before")
    distill("progressive", root / "teacher", tmp_path / "t", keep_every=5, **settings)
    assert not (tmp_path / "t.weights" / "step-0000099.safetensors").exists()


def test_what_is_kept_is_of_one_run(root: Path, tmp_path: Path) -> None:
    """--resume where there is nothing to go on from begins anew; where there is, what was kept beyond it comes again."""
    out, settings = tmp_path / "s", {**SETTINGS, "batch_size": "16"}

    def run(**options: Any) -> set[str]:
        distill("progressive", root / "teacher", out, steps=2, settings=settings, **options)
        return {file.name for file in tmp_path.glob("s.weights/step-*")}

    assert len(run(keep_every=3)) == 5
    shutil.rmtree(out)
    assert run(keep_every=8, resume=True) == {"step-0000008.safetensors", "step-0000016.safetensors"}
    shutil.rmtree(out)

    def stop(phase: str, done: int, total: int, loss: float) -> None:
        if done == 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(keep_every=5, checkpoint_every=6, progress=stop)
    (tmp_path / "s.weights" / "step-0000014.safetensors").write_bytes(b"kept beyond the checkpoint")
    assert run(keep_every=5, resume=True) == {f"step-00000{step}.safetensors" for step in ("05", "10", "15", "16")}


def test_first_combinations_are_averages() -> None:
    rows = first_combinations(4)
    assert rows.shape == (2 + len(EMA_DECAYS), 4)
    torch.testing.assert_close(rows.sum(1), torch.ones(len(rows)))
    assert rows[0].tolist() == [0.25] * 4
    assert rows[1].tolist() == [0.0, 0.0, 0.0, 1.0]
    torch.testing.assert_close(rows[3, :3] / rows[3, 1:], torch.full((3,), 0.5))


@pytest.mark.parametrize("best", [[0.5, 0.5, 0.0, 0.0, 0.0], [-0.4, 0.1, 0.2, 0.3, 0.8]])
def test_the_search_finds_the_least_of_a_bowl(best: list[float]) -> None:
    """Negative coefficients, too; no first combination is there."""
    target, seen = torch.tensor(best), []

    def bowl(row: torch.Tensor) -> float:
        seen.append(float(row.sum()))
        return float((row - target).square().sum())

    first = first_combinations(5)
    found = search(bowl, first, generations=40, population=16, seed=3)
    assert bowl(found) < 0.02 * min(bowl(row) for row in first)
    assert seen == pytest.approx([1.0] * len(seen), abs=1e-5)
    assert torch.equal(found, search(bowl, first, generations=40, population=16, seed=3))
    assert not torch.equal(found, search(bowl, first, generations=40, population=16, seed=4))


def test_a_mixture_is_linear_in_the_weights() -> None:
    networks = [torch.nn.Linear(3, 2) for _ in range(3)]
    mixture = Mixture(networks[0], [network.state_dict() for network in networks])
    for i, network in enumerate(networks):
        assert torch.equal(mixture(torch.eye(3)[i]).weight, network.weight)
    mixed = mixture(torch.tensor([2.0, -1.5, 0.5]))
    torch.testing.assert_close(
        mixed.weight.detach(), (2.0 * networks[0].weight - 1.5 * networks[1].weight + 0.5 * networks[2].weight).detach()
    )
    with pytest.raises(ArtifactError, match="another network"):
        Mixture(torch.nn.Linear(2, 2), [network.state_dict() for network in networks])


def test_a_combination_is_a_student(root: Path, tmp_path: Path) -> None:
    made = combine(root / "student", root / "teacher", tmp_path / "both", **SMALL)
    json.dumps(made, allow_nan=False)
    assert made["checkpoints"] == [5, 10, 15, 16]
    assert sum(made["coefficients"]) == pytest.approx(1.0, abs=1e-4)
    # The plain average and the last weights were among those tried.
    searched, held_out = made["searched"], made["held_out"]
    assert searched["combination"] <= min(searched["average"], searched["last"])
    assert made["beats_average"] == (held_out["combination"] < held_out["average"])
    old, new = load_student(root / "student"), load_student(tmp_path / "both")
    assert new.digest == made["digest"]
    assert dataclasses.replace(new.spec, provenance={}) == dataclasses.replace(old.spec, provenance={})
    combined = new.spec.provenance["combined"]
    assert (combined["student"], combined["coefficients"]) == (old.digest, made["coefficients"])
    assert claims_pairing(new, 2) == claims_pairing(old, 2)
    kept = [load_file(file) for file in sorted((root / "student.weights").glob("*.safetensors"))]
    for name, value in new.networks[0].state_dict().items():
        mixed = sum(c * state[name] for c, state in zip(made["coefficients"], kept, strict=True))
        torch.testing.assert_close(value, mixed, rtol=1e-3, atol=1e-5)
    again = combine(root / "student", root / "teacher", tmp_path / "again", **SMALL)
    assert again["digest"] == made["digest"]


def test_a_student_of_data_alone_is_held_against_the_teacher_without_guidance(tmp_path: Path) -> None:
    teacher = tmp_path / "teacher"
    train("grid25-labelled-teacher", teacher, settings={"steps": "3", "batch_size": "16", "warmup": "1"})
    brief = {"iterations": "4", "batch_size": "16"}
    scales = {}
    for method in ("ect", "consistency"):
        distill(method, teacher, tmp_path / method, steps=1, settings=brief, keep_every=2)
        scales[method] = combine(tmp_path / method, teacher, tmp_path / f"{method}-both", **SMALL)["guidance"]
    assert scales == {"ect": 1.0, "consistency": 2.0}


def test_what_cannot_be_combined(root: Path, tmp_path: Path) -> None:
    student, teacher = root / "student", root / "teacher"

    def refused(kind: type[Exception], match: str, **changes: Any) -> None:
        with pytest.raises(kind, match=match):
            combine(changes.pop("student", student), teacher, tmp_path / "out", **{**SMALL, **changes})
        assert not (tmp_path / "out").exists()

    refused(ArtifactError, "no kept weights", student=teacher)
    refused(UsageError, "at least 10 samples", num_samples=3)
    refused(UsageError, "at least 10 samples", population=2)
    refused(UsageError, "7", steps=7)
    refused(UsageError, "seed must be 0", seed=-1)
    refused(UsageError, "seed must be 0", seed=2**64)
    other = tmp_path / "other.weights"
    shutil.copytree(root / "student.weights", other)
    (other / "step-0000010.safetensors").write_bytes(b"torn")
    refused(ArtifactError, "cannot be read", weights=other)
    for file in list(other.glob("step-*"))[1:]:
        file.unlink()
    save_file({"weight": torch.zeros(2)}, next(other.glob("step-*")))
    refused(ArtifactError, "one checkpoint", weights=other)
    (other / "weights.json").write_text('{"run": "of somebody else"}')
    refused(ArtifactError, "another run", weights=other)


def test_the_command(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["combine", str(root / "student"), "--teacher", str(root / "teacher"), "--out", str(tmp_path / "c")]
    words += ["--samples", "40", "--generations", "1", "--population", "4"]
    assert main([*words, "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert main([*words, "--force"]) == 0
    said = capsys.readouterr().out
    assert ("nearer than the plain average" in said) is True
    assert ("no nearer" in said) is not made["beats_average"]
    assert f"{made['held_out']['student']:.4f}" in said
