"""From a folder of images to a student of latents: encoded once, kept, resumed; and what is refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny_autoencoder import colours, write_autoencoder, write_images

from distill_rt.core.errors import ArtifactError, DistillError, UsageError
from distill_rt.core.spec import Condition, Guidance
from distill_rt.models import load_student
from distill_rt.models.autoencoder import load_autoencoder
from distill_rt.training.data import TensorDataset
from distill_rt.training.data.folder import open_folder
from distill_rt.training.data.latents import EncodedBatches, KeptLatents
from distill_rt.training.draws import Draws
from distill_rt.training.evaluate import evaluate
from distill_rt.training.journal import JournalOptions
from distill_rt.training.recipes import RECIPES
from distill_rt.training.recipes.digits import digits_teacher
from distill_rt.training.run import distill, train

SETTINGS = {"steps": "4", "batch_size": "4", "warmup": "2", "peak_learning_rate": "0.001"}
LATENT, IMAGE = (4, 8, 8), (3, 16, 16)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_autoencoder(tmp_path_factory.mktemp("autoencoder") / "ae")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return write_images(tmp_path / "images")


def kept(images: Path, autoencoder: Path, directory: Path, calls: list[int] | None = None) -> KeptLatents:
    loaded = load_autoencoder(autoencoder)

    def encode(x: torch.Tensor) -> torch.Tensor:
        if calls is not None:
            calls.append(len(x))
        return loaded.encoder(x)

    folder = open_folder(images, sample_shape=IMAGE, kind="none")
    return KeptLatents(folder, encode, LATENT, directory=directory, made_by=loaded.digest)


def teach(images: Path, autoencoder: Path, out: Path, **options: Any) -> dict[str, Any]:
    return train("tiny", out, data=str(images), autoencoder=autoencoder, settings=SETTINGS, **options)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """The digits recipe for images without labels, with a network that takes seconds."""
    recipe = digits_teacher()
    (network,) = recipe.spec.networks
    smaller = {"num_labels": 0, "block_out_channels": [16, 16], "attention_head_dim": 8}
    network = dataclasses.replace(network, config={**network.config, **smaller})
    spec = dataclasses.replace(recipe.spec, condition=Condition(), guidance=Guidance(), networks=(network,))
    recipes = {**RECIPES, "tiny": lambda: dataclasses.replace(recipe, spec=spec)}
    monkeypatch.setattr("distill_rt.training.run.RECIPES", recipes)


def test_from_a_folder_to_a_student_of_latents(images: Path, autoencoder: Path, tmp_path: Path) -> None:
    journal = JournalOptions(directory=tmp_path / "journal", every=1, sample_every=4)
    made = teach(images, autoencoder, tmp_path / "teacher", journal=journal)
    assert made["notes"] == []
    assert not (tmp_path / "teacher.latents").exists()  # kept for this run only
    teacher = load_student(tmp_path / "teacher")
    assert (teacher.spec.sample_shape, teacher.spec.image_shape) == (LATENT, IMAGE)
    digest = load_autoencoder(autoencoder).digest
    assert str(teacher.spec.provenance["data"]).startswith(f"latents:{digest}:folder:")
    with Image.open(tmp_path / "journal/samples/step-0000004.png") as sheet:
        assert sheet.size == (4 * 64, 4 * 64)  # decoded: 16 images of 16 pixels, shown at 64

    options: dict[str, Any] = {"steps": 2, "data": str(images), "settings": {"iterations": "2", "batch_size": "4"}}
    distill("consistency", tmp_path / "teacher", tmp_path / "student", autoencoder=autoencoder, **options)
    student = load_student(tmp_path / "student")
    assert student.spec.image_shape == IMAGE
    assert student.decoder is not None
    assert teacher.decoder is not None
    weights = teacher.decoder.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in student.decoder.state_dict().items())
    assert evaluate(tmp_path / "student", tmp_path / "teacher", nfe=[2], num_samples=200)["rows"][0]["steps"] == 2


def test_every_image_is_encoded_once(images: Path, autoencoder: Path, tmp_path: Path) -> None:
    calls: list[int] = []
    latents = kept(images, autoencoder, tmp_path / "latents", calls)
    latents.fill(wait=lambda: None)
    assert sum(calls) == 10
    again = kept(images, autoencoder, tmp_path / "latents", compared := [])
    again.fill(wait=lambda: None)
    batch = again.batch(Draws(0, 0, 64))
    assert sum(compared) == 1  # one of the files' images is compared
    whole = load_file(tmp_path / "latents/latents-000000.safetensors")["latents"]
    assert whole.shape == (10, *LATENT)
    # The same images as the folder itself draws, encoded.
    pixels = open_folder(images, sample_shape=IMAGE, kind="none").batch(Draws(0, 0, 64)).x0_BCHW
    torch.testing.assert_close(batch.x0_BCHW, load_autoencoder(autoencoder).encoder(pixels), rtol=2e-3, atol=2e-3)


def test_a_batch_before_fill_is_the_same(images: Path, autoencoder: Path, tmp_path: Path) -> None:
    before = kept(images, autoencoder, tmp_path / "latents").batch(Draws(0, 3, 8)).x0_BCHW
    assert not (tmp_path / "latents").exists()
    latents = kept(images, autoencoder, tmp_path / "latents")
    latents.fill(wait=lambda: None)
    torch.testing.assert_close(latents.batch(Draws(0, 3, 8)).x0_BCHW, before, rtol=2e-3, atol=2e-3)


def test_processes_share_the_files(images: Path, autoencoder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("distill_rt.training.data.latents.FILE_IMAGES", 3)
    calls: list[list[int]] = [[], []]
    for rank in (0, 1):
        latents = kept(images, autoencoder, tmp_path / f"{rank}", calls[rank])
        latents.fill(rank=rank, count=2, wait=lambda: None)  # on disks of their own: the rest follows
        assert len(list((tmp_path / f"{rank}").glob("*.safetensors"))) == 4
    assert [sum(of) for of in calls] == [10, 10]


def test_unreadable_images_are_replaced_and_noted_also_from_files(
    images: Path, autoencoder: Path, tmp_path: Path
) -> None:
    (images / "03.png").write_bytes(b"\x89PNG")
    kept(images, autoencoder, tmp_path / "latents").fill(wait=lambda: None)
    latents = kept(images, autoencoder, tmp_path / "latents")
    folder = latents._images
    assert "1 of 10 images" in folder.notes[0]
    assert "03.png" in folder.notes[0]
    (index, third), (_, fourth) = (folder.first_readable(i, latents._latent) for i in (3, 4))
    assert index == 4
    assert torch.equal(third, fourth)
    for file in images.iterdir():
        file.write_bytes(b"")
    kept(images, autoencoder, tmp_path / "none").fill(wait=lambda: None)
    with pytest.raises(ArtifactError, match="none of the 10 images"):
        kept(images, autoencoder, tmp_path / "none").batch(Draws(0, 0, 2))


def test_a_torn_file_is_made_again(images: Path, autoencoder: Path, tmp_path: Path) -> None:
    kept(images, autoencoder, tmp_path / "latents").fill(wait=lambda: None)
    file = tmp_path / "latents/latents-000000.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:500])
    kept(images, autoencoder, tmp_path / "latents").fill(wait=lambda: None)
    assert file.read_bytes() == whole


def test_latents_of_others_are_refused(images: Path, autoencoder: Path, tmp_path: Path) -> None:
    directory = tmp_path / "latents"
    kept(images, autoencoder, directory).fill(wait=lambda: None)
    other = write_autoencoder(tmp_path / "other", seed=1, iterations=0)
    with pytest.raises(UsageError, match="another autoencoder"):
        kept(images, other, directory)
    mark = json.loads((directory / "latents.json").read_bytes())
    file = directory / "latents-000000.safetensors"
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(images / "00.png")
    changed = kept(images, autoencoder, tmp_path / "changed")  # the mark of today's files, the latents of yesterday's
    (directory / "latents.json").write_text(json.dumps(mark | {"images": changed._images.identity}))
    with pytest.raises(UsageError, match=r"have changed \(00.png has\)"):
        kept(images, autoencoder, directory)
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(images / "99.png")
    with pytest.raises(UsageError, match="of other images"):
        kept(images, autoencoder, directory)
    (directory / "latents.json").write_text("[]")
    with pytest.raises(ArtifactError, match="no directory of latents"):
        kept(images, autoencoder, directory)
    (directory / "latents.json").unlink()
    with pytest.raises(ArtifactError, match="no directory of latents"):
        kept(images, autoencoder, directory)
    assert file.exists()


def test_a_killed_run_ends_with_the_same_digest(images: Path, autoencoder: Path, tmp_path: Path) -> None:
    whole = teach(images, autoencoder, tmp_path / "whole", latents=tmp_path / "latents")
    assert (tmp_path / "latents/latents-000000.safetensors").exists()  # where it was said, it stays

    class Stop(BaseException):
        pass

    def stop(phase: str, done: int, total: int, loss: float | None) -> None:
        if phase != "latents" and done == 2:
            raise Stop

    with pytest.raises(Stop):
        teach(images, autoencoder, tmp_path / "killed", checkpoint_every=1, progress=stop)
    assert (tmp_path / "killed.latents").exists()
    made = teach(images, autoencoder, tmp_path / "killed", checkpoint_every=1, resume=True)
    assert made["digest"] == whole["digest"]
    assert not (tmp_path / "killed.latents").exists()


def test_a_data_set_of_ours_is_encoded_in_batches(autoencoder: Path) -> None:
    dataset = TensorDataset(x0_NCHW=colours(5), label_N=None, num_classes=0)
    encoder = load_autoencoder(autoencoder).encoder
    encoded = EncodedBatches(dataset, encoder, LATENT)
    draws = Draws(0, 0, 3)
    torch.testing.assert_close(encoded.batch(draws).x0_BCHW, encoder(dataset.batch(draws).x0_BCHW))


def test_what_does_not_fit_is_refused(images: Path, autoencoder: Path, tmp_path: Path) -> None:
    teach(images, autoencoder, tmp_path / "latent")
    train("tiny", tmp_path / "pixels", data=str(images), settings=SETTINGS)
    untrained = write_autoencoder(tmp_path / "untrained", seed=3, iterations=0)
    options: dict[str, Any] = {"data": str(images), "settings": {"iterations": "2", "batch_size": "4"}}

    def refusal(teacher: str, **more: Any) -> DistillError:
        with pytest.raises(DistillError) as caught:
            distill("consistency", tmp_path / teacher, tmp_path / "out", **options, **more)
        assert not list(tmp_path.glob("out*"))
        return caught.value

    assert refusal("latent").code == "autoencoder-missing"
    assert refusal("pixels", autoencoder=autoencoder).code == "autoencoder-not-needed"
    assert refusal("pixels", latents=tmp_path / "x").code == "latents-not-needed"
    assert refusal("latent", autoencoder=images).code == "autoencoder-missing"
    wrong = refusal("latent", autoencoder=untrained)
    assert wrong.code == "autoencoder-mismatch"
    assert "of the variance" in wrong.message
    other = write_autoencoder(tmp_path / "wide", iterations=0, latent_channels=8)
    assert "latents of 8x8x8" in refusal("latent", autoencoder=other).message
    with pytest.raises(UsageError, match="does not take images"):
        train("grid25-teacher", tmp_path / "out", data=str(images), autoencoder=autoencoder)
    with pytest.raises(UsageError, match="the student's are 3x16x16"):
        train("tiny", tmp_path / "out", data="shapes", autoencoder=autoencoder, settings=SETTINGS)


def test_an_unusual_spread_is_noted(images: Path, tmp_path: Path) -> None:
    scaled = write_autoencoder(tmp_path / "ae", scaling_factor=8.0)
    (note,) = teach(images, scaled, tmp_path / "teacher")["notes"]
    assert "standard deviation" in note
    assert "scaling_factor" in note
