"""The quality protocol with prompts: the reader of scenes, an exact student that passes, and one that mixes captions up."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from closed_forms import PROCESS, V, v_from_x0
from torch import Tensor, nn

from distill_rt.cli.main import main
from distill_rt.core.errors import UsageError
from distill_rt.core.guidance import combine_guidance
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.spec import Guidance, NetworkSpec
from distill_rt.models import Student, load_student, save_student
from distill_rt.models.text_encoder import ClipTextEncoder
from distill_rt.training.combine import combine
from distill_rt.training.data import Shapes
from distill_rt.training.data.shapes import NUM_TRAINING_SCENES, WORDS, Scene, render, unseen_scenes
from distill_rt.training.evaluate import evaluate, measure_yardstick
from distill_rt.training.predictor import Conditions
from distill_rt.training.quality.baselines import CONTROLS, gaussian_fit
from distill_rt.training.quality.bench import QualityBench
from distill_rt.training.quality.gate import Yardstick, verdict
from distill_rt.training.quality.metrics import c2st
from distill_rt.training.quality.prompts import Asked
from distill_rt.training.quality.scenes import SceneReader, quarter_labels
from distill_rt.training.recipes import RECIPES
from distill_rt.training.recipes.base import Recipe
from distill_rt.training.run import distill, train
from distill_rt.training.sampling import raw_output
from distill_rt.training.text import TextSide, fresh_text

NUM_SAMPLES = 400


def small_recipe() -> Recipe:
    """The recipe of prompts, but for a smaller network."""
    recipe = RECIPES["shapes-text-teacher"]()
    small = {
        "block_out_channels": [8, 16],
        "norm_num_groups": 4,
        "attention_head_dim": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    }
    network = NetworkSpec(kind="unet2d_condition", config={**recipe.spec.networks[0].config, **small})
    return dataclasses.replace(recipe, spec=dataclasses.replace(recipe.spec, networks=(network,)))


def pictures(indices: range) -> tuple[Tensor, list[Scene]]:
    pixels, scenes = render(indices)
    return torch.from_numpy(pixels).float() / 127.5 - 1.0, scenes


# -- the reader of scenes -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader(scenes_bench: tuple[QualityBench, Student, Yardstick]) -> SceneReader:
    reader = scenes_bench[0].classifier
    assert isinstance(reader, SceneReader)
    return reader


def test_the_reader_reads_scenes_that_training_never_draws(reader: SceneReader) -> None:
    images, scenes = pictures(range(NUM_TRAINING_SCENES, NUM_TRAINING_SCENES + 500))
    assert [scene.caption for scene in scenes] == [scene.caption for scene in unseen_scenes(500)]
    asked = quarter_labels(scenes)
    assert reader.held_out_accuracy > 0.995
    assert reader.accuracy(images, asked) > 0.99
    assert reader.accuracy(images + 0.1 * torch.randn(images.shape, generator=torch.manual_seed(0)), asked) > 0.97
    assert reader.accuracy(images, asked.roll(1, 0)) < 0.05
    assert reader.accuracy(images.flip(3), asked) < 0.5  # the places count; scenes that fill a row are their own mirror
    assert reader.embed(images).shape == (2000, 64)


def test_a_label_is_shown_by_one_object_or_more_and_nothing_else(reader: SceneReader) -> None:
    images, scenes = pictures(range(300))
    labels = torch.tensor([scene.label for scene in scenes])
    assert reader.accuracy(images, labels) > 0.99
    assert reader.accuracy(images.flip(3), labels) > 0.98
    assert reader.accuracy(images, (labels + 1) % Shapes.num_classes) < 0.01
    assert reader.accuracy(torch.full((8, 3, 32, 32), -0.8), torch.arange(8)) == 0.0, "nothing shows no label"
    ones = [i for i, scene in enumerate(scenes) if len(scene.quarters) == 1]
    other = next(
        i for i in ones if scenes[i].label != scenes[ones[0]].label and scenes[i].quarters != scenes[ones[0]].quarters
    )
    both = torch.maximum(images[ones[0]], images[other])[None]
    assert reader.accuracy(both, labels[ones[:1]]) == 0.0, "an object that was not asked for"


# -- an exact student and one that mixes prompts up -----------------------------------------------------------------------


class CaptionTeacher(nn.Module):
    """Exact denoiser, in v prediction, of rendered scenes with Gaussian noise of deviation 0.1, by caption."""

    STD, NUM_SCENES = 0.1, 12_000

    def __init__(self, side: TextSide, captions: set[str]) -> None:
        super().__init__()
        self.by_text: dict[bytes, Tensor] = {}
        images, scenes = pictures(range(self.NUM_SCENES))
        for caption in captions:
            shown = [i for i, scene in enumerate(scenes) if scene.caption == caption]
            self.by_text[side.embed([caption]).numpy().tobytes()] = images[shown].flatten(1)

    def forward(self, x: Tensor, time_B: Tensor, text_BLD: Tensor) -> Tensor:
        t_B = PROCESS.t_from_model_time(time_B)
        level = PROCESS.at(t_B)
        x0 = torch.empty_like(x)
        for i, (point, text) in enumerate(zip(x.flatten(1), text_BLD, strict=True)):
            alpha, variance = level.alpha[i], level.alpha[i] ** 2 * self.STD**2 + level.sigma[i] ** 2
            images = self.by_text[text.numpy().tobytes()]
            # |point - alpha image|^2 without the point's own square, which is the same for all
            squared = alpha**2 * images.square().sum(1) - 2 * alpha * (images @ point)
            mean = torch.softmax(-0.5 * squared / variance, dim=0) @ images
            x0[i] = (mean + alpha * self.STD**2 / variance * (point - alpha * mean)).reshape(x.shape[1:])
        return v_from_x0(PROCESS, x, x0, t_B)


class OtherPrompts(nn.Module):
    """Shows what the next image was asked for."""

    def __init__(self, exact: nn.Module) -> None:
        super().__init__()
        self.exact = exact

    def forward(self, x: Tensor, time_B: Tensor, text_BLD: Tensor) -> Tensor:
        shown: Tensor = self.exact(x, time_B, text_BLD.roll(1, 0))
        return shown


@pytest.fixture(scope="module")
def scenes_bench() -> Iterator[tuple[QualityBench, Student, Yardstick]]:
    torch.set_num_threads(1)
    tables = {n: solver(PROCESS, V, [1.0 - i / n for i in range(n)]) for n, solver in ((2, ddim), (32, dpmpp_2m))}
    spec = dataclasses.replace(
        small_recipe().spec, process=PROCESS, parameterization=V, guidance=Guidance(), plans=tables, default_steps=2
    )
    asked = unseen_scenes(NUM_SAMPLES)
    with fresh_text(spec, WORDS, seed=0) as side:
        assert side is not None
        assert isinstance(side.encoder, ClipTextEncoder)
        exact = Student(
            spec=spec,
            networks=(CaptionTeacher(side, {scene.caption for scene in asked}),),
            text_encoder=side.encoder,
            tokenizer=side.tokenizer,
            digest="0" * 64,
            path=Path("scenes"),
        )
        prompts = tuple(scene.caption for scene in asked)
        bench = QualityBench(
            exact, Shapes(), asked=Asked(prompts=prompts, scenes=tuple(asked)), num_samples=NUM_SAMPLES
        )
        yield bench, exact, measure_yardstick(bench, exact, 2)


def test_an_exact_student_of_prompts_passes_and_one_that_mixes_them_up_does_not(
    scenes_bench: tuple[QualityBench, Student, Yardstick],
) -> None:
    bench, exact, held = scenes_bench
    measured = bench.measure(bench.student_samples(exact, 32))
    assert verdict(measured, held, follows_trajectory=True) == {}
    assert measured.label_accuracy is not None
    assert measured.label_accuracy > 0.97
    mixed = dataclasses.replace(exact, networks=(OtherPrompts(exact.networks[0]),))
    measured = bench.measure(bench.student_samples(mixed, 32))
    failures = verdict(measured, held, follows_trajectory=False)
    assert measured.c2st < 0.6, "as a set they are the teacher's"
    assert {"label_accuracy", "energy"} <= set(failures), failures


@pytest.mark.parametrize("name", ["gaussian fit", "memoriser", "teacher as student"])
def test_controls_fail_with_prompts_too(scenes_bench: tuple[QualityBench, Student, Yardstick], name: str) -> None:
    bench, exact, held = scenes_bench
    failures = verdict(bench.measure(CONTROLS[name](bench, exact, 2)), held, follows_trajectory=True)
    assert {"gaussian fit": "energy", "memoriser": "label_accuracy", "teacher as student": "recall"}[name] in failures


def test_a_gaussian_of_more_elements_than_samples_has_their_covariance(
    scenes_bench: tuple[QualityBench, Student, Yardstick],
) -> None:
    """Along any direction: the variance of the teacher's samples, from as many draws (a fifth is four deviations)."""
    bench, _, _ = scenes_bench
    drawn, fresh = gaussian_fit(bench).flatten(1), bench.fresh.flatten(1)
    assert fresh.shape[1] > len(fresh)
    directions = torch.randn(fresh.shape[1], 20, generator=torch.manual_seed(0))
    ratio = (drawn @ directions).var(0) / (fresh @ directions).var(0)
    assert float(ratio.mean()) == pytest.approx(1.0, abs=0.1)
    assert float((ratio - 1).abs().max()) < 0.4
    shift = (drawn - fresh).mean(0) @ directions / (fresh @ directions).std(0)
    assert float(shift.abs().max()) < 4 * (2 / len(fresh)) ** 0.5


# -- directories ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def _few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """A yardstick that is no good, but quick: nothing is asked of its figures."""
    monkeypatch.setattr("distill_rt.training.quality.bench.REFERENCE_EVALUATIONS", 4)
    monkeypatch.setattr("distill_rt.training.quality.bench.c2st", functools.partial(c2st, iterations=5))
    monkeypatch.setattr("distill_rt.training.quality.scenes.NUM_SCENES", 64)
    monkeypatch.setattr("distill_rt.training.quality.scenes.ITERATIONS", 5)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of prompts with a small network and a student of two steps with kept weights; hardly trained."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("prompts")
    recipe = small_recipe()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "shapes-text-teacher", lambda: recipe)
        train("shapes-text-teacher", root / "teacher", settings={"steps": "4", "batch_size": "2", "warmup": "1"})
    settings = {"batch_size": "2", "iterations": "4"}
    distill("lcm", root / "teacher", root / "student", steps=2, settings=settings, keep_every=2)
    own = load_student(root / "teacher")
    provenance = {**own.spec.provenance, "data": "folder:0123"}
    save_student(
        root / "own-images",
        dataclasses.replace(own.spec, provenance=provenance),
        own.networks,
        text_encoder=own.text_encoder,
        tokenizer=own.tokenizer,
    )
    return root


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_guidance_by_two_evaluations_subtracts_the_empty_prompt(root: Path, rescale: float) -> None:
    loaded = load_student(root / "teacher")
    side, network = TextSide.of(loaded), loaded.networks[0]
    assert side is not None
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    spec = dataclasses.replace(loaded.spec, guidance=dataclasses.replace(loaded.spec.guidance, rescale=rescale))
    x, time, w = torch.randn(2, 3, 32, 32), torch.full((2,), 500.0), torch.tensor([1.5, 3.0])
    text_BLD = side.embed(["a red circle in the top left", "two blue crosses in the top left and the top right"])
    with torch.no_grad():
        out = raw_output(spec, network, x, [time], Conditions(text_BLD=text_BLD, w_B=w), side.null_LD)
        F_u, F_c = (network(x, time, value).numpy() for value in (side.null_LD.expand(2, -1, -1), text_BLD))
    expected = combine_guidance(F_u, F_c, w.numpy(), rescale=rescale)
    np.testing.assert_allclose(out.numpy(), expected, rtol=1e-3, atol=1e-4)
    assert not np.allclose(F_u, F_c, atol=1e-3), "the prompt reaches the output"


@pytest.mark.usefixtures("_few_evaluations")
def test_a_student_of_prompts_is_measured_from_the_command_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(root / "student"), "--teacher", str(root / "teacher"), "--samples", "200", "--json"]
    assert main([*words, "--nfe", "2"]) == 0
    report = json.loads(capsys.readouterr().out)
    (row,) = report["rows"]
    assert report["num_prompts"] == len({scene.caption for scene in unseen_scenes(200)})
    assert report["guidance"] == 3.0
    assert not row["passed"], "a student that was hardly trained is a control"
    assert row["label_accuracy"] is not None
    assert row["feature_frechet"] is not None
    (tmp_path / "prompts.txt").write_text("a red circle in the top left\n\n  a blue cross in the top left  \n")
    assert main([*words, "--nfe", "1", "--prompts", str(tmp_path / "prompts.txt")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["num_prompts"] == 2
    assert report["rows"][0]["label_accuracy"] is None, "what the prompts say is not known"


@pytest.mark.usefixtures("_few_evaluations")
def test_images_of_ones_own_need_prompts(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="captions of what it was trained on are not known here"):
        evaluate(root / "student", root / "own-images", num_samples=200)
    prompts = ["a red circle in the top left"]
    report = evaluate(root / "student", root / "own-images", num_samples=200, nfe=[1], prompts=prompts)
    assert report["num_prompts"] == 1
    assert report["rows"][0]["feature_frechet"] is None


@pytest.mark.usefixtures("_few_evaluations")
def test_a_combination_of_weights_that_read_prompts(root: Path, tmp_path: Path) -> None:
    size: dict[str, Any] = {"num_samples": 20, "generations": 1, "population": 4, "steps": 1}
    made = combine(root / "student", root / "teacher", tmp_path / "a", **size)
    student = load_student(tmp_path / "a")
    assert student.tokenizer is not None
    assert student.spec.condition == load_student(root / "teacher").spec.condition
    other = combine(
        root / "student", root / "teacher", tmp_path / "b", prompts=["a white cross in the top left"], **size
    )
    assert other["searched"] != made["searched"]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "there is no prompt in"),
        (b"\n  \n", "there is no prompt in"),
        (b"\xff\xfe\xff", "no text in UTF-8"),
        (None, "No such"),
    ],
)
def test_files_of_prompts_that_are_none(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, match: str
) -> None:
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    for command in ("evaluate", "combine"):
        words = [command, str(root / "student"), "--teacher", str(root / "teacher"), "--prompts", str(file)]
        assert main([*words, *(["--out", str(tmp_path / "out")] if command == "combine" else [])]) == 2
        error = capsys.readouterr().err
        assert match in error
        assert "Traceback" not in error
    assert not (tmp_path / "out").exists()


def test_prompts_for_a_student_that_reads_none(tmp_path: Path) -> None:
    from distill_rt.models import build_network

    spec = dataclasses.replace(RECIPES["grid25-teacher"]().spec, provenance={"data": "grid25"})
    save_student(tmp_path / "points", spec, [build_network(spec.networks[0])])
    with pytest.raises(UsageError, match="reads no prompts"):
        evaluate(tmp_path / "points", tmp_path / "points", num_samples=200, prompts=["a red circle"])
    for prompts in ([], ["a", " "]):
        with pytest.raises(UsageError, match=r"reads no prompts|none of them empty"):
            evaluate(tmp_path / "points", tmp_path / "points", num_samples=200, prompts=prompts)
