"""What `--data` says: a data set of ours by name, a folder of images, or one of the `datasets` package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import StudentSpec
from distill_rt.training.data.base import Batch, Dataset
from distill_rt.training.data.catalogue import DATASETS, load_dataset
from distill_rt.training.data.folder import open_folder
from distill_rt.training.data.huggingface import open_huggingface
from distill_rt.training.data.streamed import StreamedImages
from distill_rt.training.draws import Draws

HUGGING_FACE = "hf:"
LATENTS = "latents:"
"""Before the identity of images that were encoded: ``latents:AUTOENCODER:IMAGES``."""
_EXTERNAL = ("folder:", HUGGING_FACE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Args: identity: names the content in checkpoints and students; class_names: of labels, () where nobody named them."""

    identity: str
    dataset: Dataset
    class_names: tuple[str, ...] = ()

    @property
    def notes(self) -> list[str]:
        """What a person should know of the images that were read so far."""
        return self.dataset.notes if isinstance(self.dataset, StreamedImages) else []


def open_source(what: str, spec: StudentSpec) -> Source:
    """Open data for a contract: images of its shape (those of a student with a decoder are not encoded here), with what its
    condition needs and nothing else.

    Args:
        what: name of a data set of ours, ``hf:NAME``, or a directory of images.

    Raises:
        UsageError: nothing of that name, or not the shape, the labels or the captions that the contract needs.
        ArtifactError: a damaged file of captions.
        TargetError: ``hf:`` without its package.
    """
    shape, kind = spec.image_shape, spec.condition.kind
    if what in DATASETS:
        return Source(identity=what, dataset=_fitted(what, load_dataset(what), spec))
    streamed = None
    if what.startswith(HUGGING_FACE):
        streamed = open_huggingface(what.removeprefix(HUGGING_FACE), sample_shape=shape, kind=kind)
    elif what and Path(what).is_dir():
        streamed = open_folder(Path(what), sample_shape=shape, kind=kind)
    if streamed is None:
        raise UsageError(
            f"data set {what!r} is unknown, and there is no such directory",
            code="dataset-unknown",
            hint=f"one of: {', '.join(sorted(DATASETS))}; a directory of images; or hf:NAME",
        )
    return Source(identity=streamed.identity, dataset=streamed, class_names=streamed.class_names)


def recorded_source(identity: str) -> str | None:
    """What `open_source` opens for an identity that a student records; None for data that only their owner can find."""
    if identity.startswith(LATENTS):
        identity = identity.removeprefix(LATENTS).partition(":")[2]
    return None if identity.startswith(_EXTERNAL) else identity


def check_classes(source: Source, spec: StudentSpec, known: list[str] | None) -> None:
    """Refuse labels that mean something else than the contract's.

    Args:
        known: class names that the teacher was trained with, if it says so.
    """
    num = source.dataset.num_classes
    if spec.condition.kind == "label" and num != spec.condition.num_classes:
        raise UsageError(
            f"the data have {num} classes, the student takes {spec.condition.num_classes}",
            code="data-labels",
            hint="give the data that the teacher was trained on, or data with the same classes",
        )
    if known and source.class_names and list(source.class_names) != known:
        differing = next(pair for pair in zip(source.class_names, known, strict=True) if pair[0] != pair[1])
        raise UsageError(
            f"the classes differ from those of the teacher: {differing[0]!r:.80} stands where it learned {differing[1]!r:.80}",
            code="data-labels",
            hint="name the sub-folders as they were named for the teacher",
        )


def _fitted(name: str, dataset: Dataset, spec: StudentSpec) -> Dataset:
    """A data set of ours without what the contract does not take."""
    kind = spec.condition.kind
    if dataset.sample_shape != spec.image_shape:
        theirs, ours = ("x".join(map(str, shape)) for shape in (dataset.sample_shape, spec.image_shape))
        raise UsageError(
            f"data set {name} has samples of {theirs} (channels x height x width), the student's are {ours}",
            code="data-shape",
            hint="a directory of images is resized to fit",
        )
    lacks = {"label": not dataset.num_classes, "text": not dataset.has_captions}.get(kind, False)
    if lacks:
        raise UsageError(
            f"data set {name} has no {'labels' if kind == 'label' else 'captions'}, which the student takes",
            code="data-labels" if kind == "label" else "data-captions",
            hint=f"one of: {', '.join(sorted(DATASETS))}; a directory of images; or hf:NAME",
        )
    too_much = (dataset.num_classes and kind != "label") or (dataset.has_captions and kind != "text")
    return _Only(dataset, labels=kind == "label", captions=kind == "text") if too_much else dataset


class _Only:
    """A data set of which the labels or the captions are left out, because the contract takes none."""

    def __init__(self, dataset: Dataset, *, labels: bool, captions: bool) -> None:
        self._dataset = dataset
        self._labels, self._captions = labels, captions
        self.sample_shape = dataset.sample_shape
        self.num_classes = dataset.num_classes if labels else 0
        self.has_captions = dataset.has_captions and captions

    def batch(self, draws: Draws) -> Batch:
        batch = self._dataset.batch(draws)
        return Batch(
            x0_BCHW=batch.x0_BCHW,
            label_B=batch.label_B if self._labels else None,
            captions_B=batch.captions_B if self._captions else None,
        )
