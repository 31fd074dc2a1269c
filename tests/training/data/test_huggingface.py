"""Data sets of the `datasets` package, on ones saved here; without the package, the refusal."""

from __future__ import annotations

import importlib
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from distill_rt.core.errors import TargetError, UsageError
from distill_rt.core.optional import installed
from distill_rt.training.data.huggingface import open_huggingface
from distill_rt.training.data.streamed import StreamedImages
from distill_rt.training.draws import Draws

needs_datasets = pytest.mark.skipif(not installed("datasets"), reason="needs the package datasets")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Twelve images of one grey each with a class, a caption and something else."""
    datasets = importlib.import_module("datasets")
    features = datasets.Features(
        {
            "id": datasets.Value("int64"),
            "picture": datasets.Image(),
            "class": datasets.ClassLabel(names=["dark", "light"]),
            "text": datasets.Value("string"),
        }
    )
    rows = {
        "id": list(range(12)),
        "picture": [Image.fromarray(np.full((8, 8), 20 * i, np.uint8)) for i in range(12)],
        "class": [int(i >= 6) for i in range(12)],
        "text": [f"grey {20 * i}" for i in range(12)],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def opened(path: Path, kind: str = "none") -> StreamedImages:
    return open_huggingface(str(path), sample_shape=(1, 4, 4), kind=kind)


def levels(x0_BCHW: torch.Tensor) -> list[int]:
    return [round(float(v)) for v in ((x0_BCHW + 1.0) * 127.5).mean((1, 2, 3))]


@needs_datasets
def test_a_saved_data_set(saved):
    batch = opened(saved, "label").batch(Draws(0, 0, 32))
    assert batch.label_B is not None
    assert batch.label_B.tolist() == [int(level >= 120) for level in levels(batch.x0_BCHW)]
    assert opened(saved, "label").class_names == ("dark", "light")
    batch = opened(saved, "text").batch(Draws(0, 0, 32))
    assert batch.captions_B == tuple(f"grey {level}" for level in levels(batch.x0_BCHW))
    batch = opened(saved).batch(Draws(0, 0, 32))
    assert (batch.label_B, batch.captions_B) == (None, None)
    assert len(set(levels(batch.x0_BCHW))) > 6


@needs_datasets
def test_the_identity_does_not_depend_on_the_place(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "elsewhere" / "saved")
    first = opened(saved, "label").identity
    assert first.startswith("hf:saved:")
    assert str(tmp_path) not in first
    assert opened(tmp_path / "elsewhere" / "saved", "label").identity == first
    assert opened(saved, "text").identity != first


@needs_datasets
def test_what_a_data_set_lacks(saved, tmp_path):
    datasets = importlib.import_module("datasets")
    whole = datasets.load_from_disk(str(saved))
    for columns, kind, said in (
        (["picture", "text"], "label", "no labels (a column of class labels); its columns: picture, text"),
        (["picture", "class"], "text", "no captions (a column text or caption or prompt); its columns: picture, class"),
        (["class", "text"], "none", "no column of images; it has class, text"),
    ):
        path = tmp_path / kind
        whole.select_columns(columns).save_to_disk(path)
        with pytest.raises(UsageError) as caught:
            opened(path, kind)
        assert said in caught.value.message
    datasets.DatasetDict({"test": whole}).save_to_disk(tmp_path / "split")
    with pytest.raises(UsageError, match="no rows in a split named train"):
        opened(tmp_path / "split")
    (tmp_path / "not one").mkdir()
    with pytest.raises(UsageError, match="cannot be opened") as caught:
        opened(tmp_path / "not one")
    assert "\n" not in caught.value.message


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TargetError) as caught:
        opened(tmp_path)
    assert caught.value.code in ("package-missing", "package-broken")
    assert "distill-rt[hf-datasets]" in caught.value.hint
