"""A teacher as the yardstick: reference samples, and the measurement of any sample set against them.

Students are compared with their teacher, not with the data: a perfect student of a weak teacher must pass. Two teacher sets
are drawn: one from the same noise as the student's (pairing), one from fresh noise (everything else).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill_rt.core.errors import UsageError
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.table import StepTable
from distill_rt.models import Student
from distill_rt.training.data import Dataset, Grid25, TensorDataset
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.quality.classifier import Classifier, train_classifier
from distill_rt.training.quality.metrics import (
    c2st,
    duplicate_fraction,
    frechet_distance,
    grid_modes,
    pairing_rmse,
    precision_recall,
    sliced_wasserstein,
)
from distill_rt.training.sampling import sample

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
        feature_frechet, label_accuracy: with a classifier of the real data (labelled image data only).
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


class QualityBench:
    """Reference sets of one teacher at one guidance scale.

    Args:
        teacher: with its contract.
        dataset: what the teacher was trained on; None if that is not known here.
        num_samples: per set; 1,000 separates the controls on digits, 4,000 on grid25.
        guidance: w, None for the contract's default.
    """

    def __init__(
        self,
        teacher: Student,
        dataset: Dataset | None,
        *,
        num_samples: int = 2000,
        guidance: float | None = None,
        seed: int = 0,
    ) -> None:
        if teacher.spec.condition.kind == "text":
            raise UsageError(
                f"{teacher.path} reads prompts, which the quality protocol does not give",
                code="quality-without-prompts",
                hint="look at its images: export, compile and generate --prompt",
            )
        self.teacher = Teacher(teacher.spec, teacher.networks[0])
        self.dataset = dataset
        self.num_samples = num_samples
        self.guidance = teacher.spec.guidance.default if guidance is None else guidance
        self.seed = seed
        classes = teacher.spec.condition.num_classes
        self.labels = [i % classes for i in range(num_samples)] if classes else None
        self.classifier: Classifier | None = (
            train_classifier(dataset) if isinstance(dataset, TensorDataset) and dataset.num_classes else None
        )
        self.seeds = np.arange(num_samples, dtype=np.uint64) + np.uint64(seed * num_samples)
        table = self.reference_table()
        self.paired = self.teacher_samples(table, self.seeds)
        self.fresh = self.teacher_samples(table, self.seeds + np.uint64(FRESH_SEEDS))

        self._measured: dict[tuple[str, int], Measurement] = {}

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
        return sample(
            self.teacher.spec, [self.teacher.network], chosen, table=table, labels=self.labels, guidance=self.guidance
        )

    def student_samples(self, student: Student, num_steps: int) -> Tensor:
        """Samples of a student by a plan of its own contract."""
        table = student.spec.plans[student.spec.check_steps(num_steps)]
        w = self.guidance if student.spec.guidance.mode != "none" else None
        return sample(student.spec, student.networks, self.seeds, table=table, labels=self.labels, guidance=w)

    def measure_once(self, name: str, num_steps: int, samples: Callable[[], Tensor]) -> Measurement:
        """`measure` of samples that are the same for every student: made and measured at the first call with this name and
        number of steps, remembered from then on."""
        if (name, num_steps) not in self._measured:
            self._measured[name, num_steps] = self.measure(samples())
        return self._measured[name, num_steps]

    def measure(self, samples: Tensor, *, labels: Sequence[int] | None = None) -> Measurement:
        """Measure samples made from the bench's seeds; `labels` are those asked for (default: the bench's)."""
        chosen = self.labels if labels is None else list(labels)
        precision, recall = precision_recall(samples, self.fresh)
        frechet = accuracy = modes = on_modes = None
        if self.classifier is not None and chosen is not None:
            frechet = frechet_distance(self.classifier.embed(samples), self.classifier.embed(self.fresh))
            accuracy = self.classifier.accuracy(samples, torch.tensor(chosen))
        if isinstance(self.dataset, Grid25):
            on_modes, modes = grid_modes(samples, spacing=self.dataset.spacing, mode_std=self.dataset.mode_std)
        return Measurement(
            swd=sliced_wasserstein(samples, self.paired, seed=self.seed),
            c2st=c2st(samples, self.fresh, seed=self.seed),
            energy=self.denoising_energy(samples, chosen),
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
        for x0 in samples.split(500):
            label_B = None if labels is None else torch.tensor(labels[start : start + len(x0)])
            start += len(x0)
            t_B = torch.full((len(x0),), t)
            w_B = None if self.teacher.spec.guidance.mode == "none" else torch.full((len(x0),), self.guidance)
            x_t = float(process.alpha(t)) * x0
            denoised = self.teacher.x0(x_t, t_B, Conditions(label_B=label_B, w_B=w_B))
            total += float((denoised - x0).square().flatten(1).mean(dim=1).sum())
        return total / len(samples) / ratio**2
