"""Pass or fail: thresholds relative to measured floors and baselines, never absolute (docs/methods.md says why)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from distill_rt.training.quality.bench import Measurement


@dataclass(frozen=True, kw_only=True, slots=True)
class Yardstick:
    """What a student is held against, all measured in the same run.

    Args:
        floor: a second set of the teacher itself.
        gaussian: the Gaussian fit.
        baselines: naive samplers at the same number of steps, the untrained student and the Gaussian fit.
    """

    floor: Measurement
    gaussian: Measurement
    baselines: Mapping[str, Measurement]

    def best(self, name: str) -> float:
        """The lowest value of one measure among the baselines."""
        return min(float(getattr(m, name)) for m in self.baselines.values())


def verdict(student: Measurement, yardstick: Yardstick, *, follows_trajectory: bool) -> dict[str, str]:
    """Reasons to fail, by measure; empty means passed.

    Args:
        follows_trajectory: the student claims the teacher's image for the same noise, so pairing is held against the best
            naive solver.
    """
    checks = _image_checks if student.modes is None else _point_checks
    failures = checks(student, yardstick)
    floor, gaussian = yardstick.floor, yardstick.gaussian
    if not 0.25 * floor.energy <= student.energy <= 0.5 * gaussian.energy:
        failures["energy"] = f"{student.energy:.3f} not in [{0.25 * floor.energy:.3f}, {0.5 * gaussian.energy:.3f}]"
    if student.recall < 0.8 * floor.recall:
        failures["recall"] = f"{student.recall:.3f} < {0.8 * floor.recall:.3f}"
    if student.duplicates > floor.duplicates:
        failures["duplicates"] = f"{student.duplicates:.4f} > {floor.duplicates:.4f}"
    if follows_trajectory:
        solvers = [m.rmse for name, m in yardstick.baselines.items() if name.startswith("teacher")]
        factor = 1.0 if student.modes is None else 0.75
        if student.rmse > factor * min(solvers):
            failures["rmse"] = f"{student.rmse:.3f} > {factor * min(solvers):.3f}"
    return failures


def _image_checks(student: Measurement, yardstick: Yardstick) -> dict[str, str]:
    """Tier 3: images; without a classifier of the real ones, what it would say is left out."""
    failures = {}
    if student.c2st >= yardstick.best("c2st"):
        failures["c2st"] = f"{student.c2st:.3f} >= {yardstick.best('c2st'):.3f}"
    if student.feature_frechet is None or student.label_accuracy is None:
        return failures
    assert yardstick.floor.label_accuracy is not None
    if student.feature_frechet > yardstick.best("feature_frechet"):
        failures["feature_frechet"] = f"{student.feature_frechet:.2f} > {yardstick.best('feature_frechet'):.2f}"
    if student.label_accuracy < yardstick.floor.label_accuracy - 0.02:
        failures["label_accuracy"] = f"{student.label_accuracy:.4f} < {yardstick.floor.label_accuracy - 0.02:.4f}"
    return failures


def _point_checks(student: Measurement, yardstick: Yardstick) -> dict[str, str]:
    """Tier 2: the grid of 25 Gaussians."""
    failures = {}
    assert student.modes is not None
    if student.swd > 0.65 * yardstick.best("swd"):
        failures["swd"] = f"{student.swd:.3f} > {0.65 * yardstick.best('swd'):.3f}"
    bar = min(yardstick.gaussian.c2st - 0.01, 0.60)
    if student.c2st >= bar:
        failures["c2st"] = f"{student.c2st:.3f} >= {bar:.3f}"
    if student.modes < 23:
        failures["modes"] = f"{student.modes} < 23"
    return failures
