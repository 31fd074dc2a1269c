"""A teacher as the yardstick: reference samples, and the measurement of any sample set against them.

Students are compared with their teacher, not with the data: a perfect student of a weak teacher must pass. Two teacher sets
are drawn: one from the same noise as the student's (pairing), one from fresh noise (everything else).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.table import StepTable
from distill_rt.models import Student
from distill_rt.training.data import Dataset, Grid25, Shapes, TensorDataset
from distill_rt.training.data.shapes import Scene
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.quality.classifier import Classifier, train_classifier
from distill_rt.training.quality.kept_samples import KeptSamples
from distill_rt.training.quality.metrics import (
    c2st,
    duplicate_fraction,
    frechet_distance,
    grid_modes,
    pairing_rmse,
    precision_recall,
    sliced_wasserstein,
)
from distill_rt.training.quality.prompts import Asked
from distill_rt.training.quality.scenes import SceneReader, quarter_labels, train_scene_reader
from distill_rt.training.sampling import sample
from distill_rt.training.text import Prompts, TextSide

NO_PROMPTS = Asked()
REFERENCE_EVALUATIONS = 64
FRESH_SEEDS = 1 << 32
FLOOR_SEEDS = 1 << 33
"""First seeds of the teacher's fresh set and of the set that measures the floor; students use 0, 1, 2, ..."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One sample set against the teacher.

    Args:
        swd: sliced 2-Wasserstein distance to the set of the same noise.
        c2st: accuracy of telling it from the fresh teacher set, 0.5 is best.
        energy: the teacher's denoising error on the samples over the noise's variance.
        precision, recall: against the fresh set.
        rmse: to the teacher's image of the same noise.
        duplicates: share of samples that have a twin.
        feature_frechet, label_accuracy: with a classifier of the real data, where there is one; the latter is the share of
            images that show what was asked (a label; of prompts about shapes kind, colour, number and places).
        modes, on_modes: modes hit of 25 and share of points on one (grid25 only).
    """

    swd: float
    c2st: float
    energy: float
    precision: float
    recall: float
    rmse: float
    duplicates: float
    feature_frechet: float | None = None
    label_accuracy: float | None = None
    modes: int | None = None
    on_modes: float | None = None


class Given(TypedDict):
    """Arguments of `sample`."""

    labels: list[int] | None
    prompts: Prompts | None
    guidance: float | None


class QualityBench:
    """Reference sets of one teacher at one guidance scale.

    Args:
        teacher: with its contract.
        dataset: what the teacher was trained on; None if that is not known here.
        asked: prompts of a teacher that reads them.
        num_samples: per set; 1,000 separates the controls on digits, 4,000 on grid25.
        guidance: w, None for the contract's default.
        kept: where the teacher's own sample sets are looked up and left.
    """

    def __init__(
        self,
        teacher: Student,
        dataset: Dataset | None,
        *,
        asked: Asked = NO_PROMPTS,
        num_samples: int = 2000,
        guidance: float | None = None,
        seed: int = 0,
        kept: KeptSamples | None = None,
    ) -> None:
        text = TextSide.of(teacher)
        self.teacher = Teacher(teacher.spec, teacher.networks[0], None if text is None else text.null_LD)
        self._texts = {teacher.digest: text}
        self._kept, self._digest = kept, teacher.digest
        self.dataset = dataset
        self.num_samples = num_samples
        self.guidance = teacher.spec.guidance.default if guidance is None else guidance
        self.seed = seed
        classes = teacher.spec.condition.num_classes
        self.labels = [i % classes for i in range(num_samples)] if classes else None
        self.prompts = tuple(itertools.islice(itertools.cycle(asked.prompts), num_samples)) or None
        self._shown = self._to_show(asked.scenes)
        self.classifier = None if self._shown is None else _classifier(dataset)
        self.seeds = np.arange(num_samples, dtype=np.uint64) + np.uint64(seed * num_samples)
        table = self.reference_table()
        self._teachers_own = self.given_to(teacher)
        self.paired = self.teacher_samples(table, self.seeds)
        self.fresh = self.teacher_samples(table, self.seeds + np.uint64(FRESH_SEEDS))

        self._measured: dict[tuple[str, int], Measurement] = {}

    def _to_show(self, scenes: Sequence[Scene]) -> Tensor | None:
        """What a classifier shall find: a label for every image, or what stands in its quarters; None where nothing says so."""
        if scenes:
            return quarter_labels(list(itertools.islice(itertools.cycle(scenes), self.num_samples)))
        return None if self.labels is None else torch.tensor(self.labels)

    @property
    def floor(self) -> Measurement:
        """A third set of the teacher's own samples: what a perfect student would measure. Measured once."""
        seeds = self.seeds + np.uint64(FLOOR_SEEDS)
        return self.measure_once("floor", 0, lambda: self.teacher_samples(self.reference_table(), seeds))

    @property
    def evaluations_per_step(self) -> int:
        return 2 if self.teacher.spec.guidance.mode == "cfg" else 1

    def reference_table(self) -> StepTable:
        """DPM-Solver++(2M) at 64 evaluations."""
        spec = self.teacher.spec
        num_steps = REFERENCE_EVALUATIONS // self.evaluations_per_step
        return dpmpp_2m(spec.process, spec.parameterization, [1.0 - i / num_steps for i in range(num_steps)])

    def teacher_samples(self, table: StepTable, seeds: NDArray[np.uint64] | None = None) -> Tensor:
        """Samples of the teacher by any table, for the bench's own seeds unless told otherwise."""
        chosen = self.seeds if seeds is None else seeds

        def make() -> Tensor:
            return sample(self.teacher.spec, [self.teacher.network], chosen, table=table, **self._teachers_own)

        if self._kept is None:
            return make()
        what = {
            "teacher": self._digest,
            "table": table.to_json(),
            "seeds": chosen.tolist(),
            "labels": self.labels,
            "prompts": self.prompts,
            "guidance": self.guidance,
        }
        return self._kept.get(what, make)

    def student_samples(self, student: Student, num_steps: int) -> Tensor:
        """Samples of a student by a plan of its own contract."""
        table = student.spec.plans[student.spec.check_steps(num_steps)]
        return sample(student.spec, student.networks, self.seeds, table=table, **self.given_to(student))

    def given_to(self, student: Student) -> Given:
        """What `sample` is told beside seeds and table: labels or prompts of all images, and the guidance scale."""
        if student.digest not in self._texts:
            self._texts[student.digest] = TextSide.of(student)
        text = self._texts[student.digest]
        return Given(
            labels=self.labels,
            prompts=None if text is None or self.prompts is None else Prompts(texts=self.prompts, side=text),
            guidance=self.guidance if student.spec.guidance.mode != "none" else None,
        )

    def measure_once(self, name: str, num_steps: int, samples: Callable[[], Tensor]) -> Measurement:
        """`measure` of samples that are the same for every student: made and measured at the first call with this name and
        number of steps, remembered from then on."""
        if (name, num_steps) not in self._measured:
            self._measured[name, num_steps] = self.measure(samples())
        return self._measured[name, num_steps]

    def measure(self, samples: Tensor, *, labels: Sequence[int] | None = None) -> Measurement:
        """Measure samples made from the bench's seeds; `labels` are those asked for (default: the bench's)."""
        shown = self._shown if labels is None else torch.tensor(list(labels))
        precision, recall = precision_recall(samples, self.fresh)
        frechet = accuracy = modes = on_modes = None
        if self.classifier is not None and shown is not None:
            frechet = frechet_distance(self.classifier.embed(samples), self.classifier.embed(self.fresh))
            accuracy = self.classifier.accuracy(samples, shown)
        if isinstance(self.dataset, Grid25):
            on_modes, modes = grid_modes(samples, spacing=self.dataset.spacing, mode_std=self.dataset.mode_std)
        return Measurement(
            swd=sliced_wasserstein(samples, self.paired, seed=self.seed),
            c2st=c2st(samples, self.fresh, seed=self.seed),
            energy=self.denoising_energy(samples, self.labels if labels is None else labels),
            precision=precision,
            recall=recall,
            rmse=pairing_rmse(samples, self.paired),
            duplicates=duplicate_fraction(samples),
            feature_frechet=frechet,
            label_accuracy=accuracy,
            modes=modes,
            on_modes=on_modes,
        )

    def denoising_energy(self, samples: Tensor, labels: Sequence[int] | None, *, ratio: float = 0.2) -> float:
        """``E |x0_teacher(x) - x|^2 / (ratio^2 d)``: how far the teacher moves a sample that it is told has noise `ratio`.

        `ratio` is sigma / alpha. High off the manifold of the teacher's samples, low on it, near zero for blurred means.
        """
        process = self.teacher.process
        t = float(process.t_from_sigma_ratio(ratio))
        total, start = 0.0, 0
        prompts = self._teachers_own["prompts"]
        for x0 in samples.split(500):
            part = slice(start, start + len(x0))
            label_B = None if labels is None else torch.tensor(labels[part])
            text_BLD = None if prompts is None else prompts.embedded(part)
            start += len(x0)
            t_B = torch.full((len(x0),), t)
            w_B = None if self.teacher.spec.guidance.mode == "none" else torch.full((len(x0),), self.guidance)
            x_t = float(process.alpha(t)) * x0
            denoised = self.teacher.x0(x_t, t_B, Conditions(label_B=label_B, text_BLD=text_BLD, w_B=w_B))
            total += float((denoised - x0).square().flatten(1).mean(dim=1).sum())
        return total / len(samples) / ratio**2


def _classifier(dataset: Dataset | None) -> Classifier | SceneReader | None:
    """Of the real images; None where they are not ours, or have no labels."""
    if isinstance(dataset, Shapes):
        return train_scene_reader()
    return train_classifier(dataset) if isinstance(dataset, TensorDataset) and dataset.num_classes else None
