"""Image data sets of the `datasets` package: ``hf:NAME`` from the hub, or a directory that `save_to_disk` wrote."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from distill_rt.core.errors import UsageError
from distill_rt.core.optional import require
from distill_rt.training.data.pixels import MODES
from distill_rt.training.data.streamed import StreamedImages

CAPTION_COLUMNS = ("text", "caption", "prompt")


def open_huggingface(name: str, *, sample_shape: tuple[int, int, int], kind: str) -> StreamedImages:
    """Open a data set; images are decoded when they are drawn, labels and captions are read now.

    Args:
        name: on the hub (its ``train`` split is taken), or a directory of `datasets.Dataset.save_to_disk`.
        sample_shape, kind: as in `open_folder`.

    Raises:
        TargetError: the package is not installed.
        UsageError: not to be found, or without images or the labels or captions that `kind` needs.
    """
    datasets: Any = require("datasets", extra="hf-datasets")
    if sample_shape[0] not in MODES:
        raise UsageError(
            f"images have 1 or 3 channels, this student's samples have {sample_shape[0]}", code="data-shape"
        )
    try:
        rows = datasets.load_from_disk(name) if Path(name).is_dir() else datasets.load_dataset(name, split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())
        raise UsageError(f"data set hf:{name} cannot be opened: {reason:.200}", code="data-missing") from error
    if isinstance(rows, dict):
        rows = rows.get("train")
    if rows is None or not len(rows):
        raise UsageError(f"data set hf:{name} has no rows in a split named train", code="data-empty")
    columns = dict(rows.features)
    image = next((column for column, kind_ in columns.items() if isinstance(kind_, datasets.Image)), None)
    if image is None:
        raise UsageError(f"data set hf:{name} has no column of images; it has {', '.join(columns)}", code="data-empty")
    label_N, classes, captions = None, (), None
    if kind == "label":
        label = next((column for column, kind_ in columns.items() if isinstance(kind_, datasets.ClassLabel)), None)
        if label is None:
            raise _lacks(name, "labels (a column of class labels)", columns)
        label_N, classes = torch.tensor(list(rows[label]), dtype=torch.int64), tuple(columns[label].names)
        if int(label_N.min()) < 0:
            raise _lacks(name, "labels in every row (-1 stands for none)", columns)
    elif kind == "text":
        caption = next((column for column in CAPTION_COLUMNS if column in columns), None)
        if caption is None:
            raise _lacks(name, f"captions (a column {' or '.join(CAPTION_COLUMNS)})", columns)
        captions = tuple(str(text) for text in rows[caption])
    images = rows.select_columns([image])
    said = label_N.tolist() if label_N is not None else captions
    content = json.dumps([len(rows), list(columns), said]).encode()
    return StreamedImages(
        source=f"hf:{name}",
        identity=f"hf:{Path(name).name}:{hashlib.sha256(content).hexdigest()[:32]}",
        names=tuple(f"row {i}" for i in range(len(rows))),
        read=lambda i: images[i][image],
        sample_shape=sample_shape,
        label_N=label_N,
        class_names=classes,
        captions_N=captions,
    )


def _lacks(name: str, what: str, columns: dict[str, Any]) -> UsageError:
    return UsageError(
        f"data set hf:{name} has no {what}; its columns: {', '.join(columns)}",
        code="data-columns",
        hint="choose another teacher or recipe, or another data set",
    )
