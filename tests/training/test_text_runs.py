"""Runs with prompts: a teacher with its encoder, students of it, and the walk from captions to images."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from distill_rt.cli.main import main
from distill_rt.core.errors import UsageError
from distill_rt.core.spec import NetworkSpec
from distill_rt.models import load_student
from distill_rt.training.data import Shapes
from distill_rt.training.data.shapes import WORDS
from distill_rt.training.draws import Draws
from distill_rt.training.journal import JournalOptions
from distill_rt.training.recipes import RECIPES
from distill_rt.training.run import distill, train
from distill_rt.training.sampling import sample
from distill_rt.training.text import Prompts, TextSide, fresh_text


@pytest.fixture(scope="module")
def _small_recipe() -> Iterator[None]:
    recipe = RECIPES["shapes-text-teacher"]()
    blocks = {
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        "norm_num_groups": 4,
        "attention_head_dim": 2,
    }
    config = {**recipe.spec.networks[0].config, **blocks, "sample_size": 32, "block_out_channels": [8, 16]}
    spec = dataclasses.replace(recipe.spec, networks=(NetworkSpec(kind="unet2d_condition", config=config),))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(RECIPES, "shapes-text-teacher", lambda: dataclasses.replace(recipe, spec=spec))  # type: ignore[arg-type]
        yield


@pytest.fixture(scope="module")
def root(_small_recipe: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher by the recipe, but for a smaller network; hardly trained."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("text")
    train("shapes-text-teacher", root / "teacher", settings={"steps": "2", "batch_size": "2", "warmup": "1"})
    return root


def test_a_teacher_carries_its_encoder_and_its_words(root: Path) -> None:
    names = ["network0.safetensors", "student.json", "text_encoder.safetensors", "tokenizer.json"]
    assert sorted(file.name for file in (root / "teacher").iterdir()) == names
    loaded = load_student(root / "teacher")
    assert loaded.text_encoder is not None
    assert loaded.tokenizer is not None
    with fresh_text(loaded.spec, WORDS, seed=0) as text:
        assert text is not None
        own = TextSide(loaded.spec.condition, loaded.text_encoder, loaded.tokenizer)
        assert torch.equal(own.embed(["a red circle in the top left"]), text.embed(["a red circle in the top left"]))


BRIEF = {"batch_size": "2"}


@pytest.mark.parametrize(
    ("method", "steps", "settings"),
    [
        ("guidance", 2, {"iterations": "2"}),
        ("progressive", 2, {"start_steps": "4", "guidance_iterations": "1", "last_iterations": "2"}),
        ("vsd", 1, {"iterations": "2"}),
        ("scm", 1, {"iterations": "1", "source": "data"}),
        ("ladd", 2, {"iterations": "3", "num_pairs": "4", "judge_warmup": "1", "judge_steps": "1"}),
        ("rectified_flow", 2, {"iterations": "2", "num_pairs": "4", "distill_iterations": "1"}),
    ],
)
def test_students_read_prompts_as_their_teacher(
    root: Path, tmp_path: Path, method: str, steps: int, settings: dict[str, str]
) -> None:
    made = distill(method, root / "teacher", tmp_path / "student", steps=steps, settings={**BRIEF, **settings})
    student, teacher = load_student(tmp_path / "student"), load_student(root / "teacher")
    assert student.spec.guidance.mode == ("none" if settings.get("source") == "data" else "embedded")
    assert student.spec.condition == teacher.spec.condition
    assert made["steps"] == list(student.spec.steps)
    assert (student.path / "tokenizer.json").read_bytes() == (teacher.path / "tokenizer.json").read_bytes()
    assert student.text_encoder is not None
    assert teacher.text_encoder is not None
    for own, theirs in zip(student.text_encoder.parameters(), teacher.text_encoder.parameters(), strict=True):
        assert torch.equal(own, theirs)


def test_a_run_that_stops_ends_with_the_same_digest(root: Path, tmp_path: Path) -> None:
    class Stop(BaseException):
        pass

    def stop(phase: str, done: int, total: int, loss: float) -> None:
        raise Stop

    options: dict[str, Any] = {"settings": {"steps": "2", "batch_size": "2", "warmup": "1"}, "checkpoint_every": 1}
    with pytest.raises(Stop):
        train("shapes-text-teacher", tmp_path / "t", progress=stop, **options)
    made = train("shapes-text-teacher", tmp_path / "t", resume=True, **options)
    assert made["digest"] == load_student(root / "teacher").digest


def test_from_captions_to_images(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """train, distill, export, compile, generate: what the README says, with a prompt."""
    settings = {**BRIEF, "iterations": "2"}
    distill("lcm", root / "teacher", tmp_path / "student", steps=2, settings=settings)
    student, bundle, engine = (str(tmp_path / name) for name in ("student", "bundle", "engine"))
    assert main(["export", student, "--out", bundle]) == 0
    assert main(["compile", bundle, "--target", "openvino:cpu", "--out", engine, "--no-cache"]) == 0
    capsys.readouterr()
    images = []
    loaded = load_student(tmp_path / "student")
    side = TextSide.of(loaded)
    assert side is not None
    for prompt in ("two red circles in the top left and the bottom right", "a blue cross in the top left"):
        words = [
            "generate",
            engine,
            "--prompt",
            prompt,
            "--seed",
            "3",
            "--guidance",
            "4",
            "--out",
            str(tmp_path / "i.png"),
        ]
        assert main([*words, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["cut_prompts"] == [""]
        images.append(np.asarray(Image.open(tmp_path / "i.png")))
        prompts = Prompts(texts=(prompt,), side=side)
        measured = sample(loaded.spec, loaded.networks, [3], table=loaded.spec.plans[2], prompts=prompts, guidance=4.0)
        pixels = ((measured[0].clamp(-1, 1) + 1) * 127.5).round().permute(1, 2, 0).numpy()
        assert np.abs(images[-1][::2, ::2] - pixels).max() <= 1, "what is measured is what the engine makes"
    assert images[0].shape[2] == 3
    assert not np.array_equal(images[0], images[1])


def test_sheets_show_the_first_captions_and_change_nothing(root: Path, tmp_path: Path) -> None:
    settings = {"steps": "2", "batch_size": "2", "warmup": "1"}
    journal = JournalOptions(directory=tmp_path / "journal", sample_every=2)
    made = train("shapes-text-teacher", tmp_path / "t", settings=settings, journal=journal)
    assert made["digest"] == load_student(root / "teacher").digest
    captions = Shapes().batch(Draws(0, 0, 16)).captions_B
    assert (tmp_path / "journal/samples/prompts.txt").read_text().splitlines() == list(captions or ())
    sheet = np.asarray(Image.open(tmp_path / "journal/samples/step-0000002.png"))
    loaded = load_student(tmp_path / "t")
    side = TextSide.of(loaded)
    assert side is not None
    assert captions is not None
    x0 = sample(
        loaded.spec,
        loaded.networks,
        range(16),
        table=loaded.spec.plans[loaded.spec.default_steps],
        prompts=Prompts(texts=captions, side=side),
    )
    pixels = ((x0.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    third_of_the_second_row = sheet[64:128:2, 128:192:2]  # enlarged twice
    assert np.abs(third_of_the_second_row.astype(int) - pixels[6]).max() <= 1


def test_what_knows_no_prompts_says_so(root: Path, tmp_path: Path) -> None:
    teacher = root / "teacher"
    with pytest.raises(UsageError, match="networks that do take no second time"):
        distill("ctm", teacher, tmp_path / "t")
    folder = tmp_path / "photos"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "1.png")
    (folder / "1.txt").write_text("a photograph of a dog")
    for dry_run in (True, False):
        settings = {"steps": "1", "batch_size": "1"}
        with pytest.raises(UsageError, match="words that the recipe does not know"):
            train("shapes-text-teacher", tmp_path / "t", data=str(folder), settings=settings, dry_run=dry_run)
    assert not (tmp_path / "t").exists()
