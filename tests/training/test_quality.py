"""The quality protocol itself: metrics against closed forms, an exact student that must pass, cheats that must not."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from closed_forms import PROCESS, V, v_from_x0
from torch import Tensor, nn

from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.spec import Condition, NetworkSpec, StudentSpec
from distill_rt.models import Student
from distill_rt.training.data import Grid25, digits
from distill_rt.training.evaluate import measure_yardstick
from distill_rt.training.quality.baselines import CONTROLS
from distill_rt.training.quality.bench import Measurement, QualityBench
from distill_rt.training.quality.gate import Yardstick, verdict
from distill_rt.training.quality.metrics import (
    c2st,
    duplicate_fraction,
    frechet_distance,
    grid_modes,
    pairing_rmse,
    precision_recall,
    sliced_wasserstein,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- metrics --------------------------------------------------------------------------------------------------------------


def test_sliced_wasserstein_of_a_shift_in_one_dimension_is_the_shift():
    x = normal(500, 1)
    assert sliced_wasserstein(x, x) == 0.0
    assert sliced_wasserstein(x + 0.7, x[torch.randperm(500)]) == pytest.approx(0.7, rel=1e-5)
    assert sliced_wasserstein(3 * x, x) == pytest.approx(2 * float(x.square().mean().sqrt()), rel=1e-5)


@pytest.mark.parametrize("d", [2, 64])
def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_d(d):
    """A projection sees delta . u; the mean square over directions is |delta|^2 / d."""
    x, delta = normal(400, d, 1, 1), normal(d, 1, 1, seed=1)
    expected = float(delta.norm()) / math.sqrt(d)
    assert sliced_wasserstein(x + delta, x, num_projections=4000) == pytest.approx(expected, rel=0.05)
    assert sliced_wasserstein(x + delta, x[:300]) == sliced_wasserstein(x[:300] + delta, x[:300])


def test_c2st_is_a_half_for_equal_laws_and_one_for_separate_ones():
    a, b = normal(1500, 2), normal(1500, 2, seed=1)
    assert abs(c2st(a, b) - 0.5) < 0.045  # 1,500 held-out answers: 3.5 standard deviations
    assert c2st(a, b + 6.0) > 0.99
    assert c2st(a, b) == c2st(a, b)


def test_c2st_of_two_shifted_normals_is_the_best_rule_there_is():
    """N(0, 1) against N(m, 1): the best classifier cuts at m / 2 and is right with probability Phi(m / 2)."""
    best = 0.5 * (1 + math.erf(1.0 / math.sqrt(2)))
    assert c2st(normal(3000, 1), normal(3000, 1, seed=1) + 2.0) == pytest.approx(best, abs=0.03)


def test_precision_and_recall_see_dropped_and_invented_modes():
    near, far = normal(400, 2), normal(400, 2, seed=1) + 100.0
    both, one = torch.cat([near, far]), normal(800, 2, seed=2)
    precision, recall = precision_recall(one, both)
    assert precision > 0.95
    assert recall == pytest.approx(0.5, abs=0.03)
    precision, recall = precision_recall(both, one)
    assert precision == pytest.approx(0.5, abs=0.03)
    assert recall > 0.95
    precision, recall = precision_recall(normal(800, 2, seed=3), one)
    assert min(precision, recall) > 0.93
    assert precision_recall(one + 1000.0, one) == (0.0, 0.0)


def exact_normal(num_samples: int, d: int) -> Tensor:
    """Samples whose own mean is 0 and whose own covariance is 1, to rounding."""
    x = normal(num_samples, d).double()
    x = x - x.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    return x @ vectors / values.sqrt()


@pytest.mark.parametrize("d", [2, 3, 16])
def test_frechet_distance_of_normals_is_closed(d):
    """|m|^2 + tr(I + C - 2 C^(1/2)) against the standard normal (Dowson & Landau 1982)."""
    x = exact_normal(400, d)
    scale, shift = torch.linspace(0.2, 3.0, d).double(), normal(d, seed=1).double()
    rotation = torch.linalg.qr(normal(d, d, seed=2).double()).Q
    y = x * scale @ rotation + shift  # the covariance is no longer diagonal, its square root has the same trace
    expected = float(shift.square().sum() + (1 - scale).square().sum())
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(y, x) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_flat_features():
    """Features that never vary, as dead units do: the covariance is singular."""
    x = exact_normal(400, 3)
    flat = torch.cat([x, torch.zeros(400, 2).double()], dim=1)
    shifted = flat + torch.tensor([0.5, 0.0, 0.0, 2.0, 0.0]).double()
    assert frechet_distance(shifted, flat) == pytest.approx(0.25 + 4.0, rel=1e-6)


def test_duplicates():
    x = normal(600, 5)
    assert duplicate_fraction(x) == 0.0
    assert duplicate_fraction(torch.cat([x, x])) == 1.0
    assert duplicate_fraction(torch.cat([x, x[:150]])) == pytest.approx(300 / 750)
    assert duplicate_fraction(torch.cat([x, x[:150] + 1e-7])) == pytest.approx(300 / 750)
    assert duplicate_fraction(torch.cat([x, x[:150] + 1e-3])) == 0.0
    assert duplicate_fraction(1000.0 + 1e-2 * x) == 0.0, "far from the origin a careless distance sees twins"


def test_pairing():
    x = normal(100, 3)
    assert pairing_rmse(x, x) == 0.0
    assert pairing_rmse(x + 0.5, x) == pytest.approx(0.5, rel=1e-5)


def test_grid_modes():
    spacing, std = 0.7, 0.05
    grid = torch.cartesian_prod(torch.arange(5.0), torch.arange(5.0)) - 2
    points = spacing * grid.repeat(20, 1)

    def modes(x: Tensor) -> tuple[float, int]:
        return grid_modes(x[:, :, None, None], spacing=spacing, mode_std=std)

    assert modes(points) == (1.0, 25)
    assert modes(points + 2.9 * std / math.sqrt(2)) == (1.0, 25)
    assert modes(points + 3.1 * std / math.sqrt(2)) == (0.0, 0)
    assert modes(points[(points[:, 0] > 0).nonzero()[:, 0]]) == (1.0, 10)
    assert modes(points + spacing) == (pytest.approx(16 / 25), 16)  # outside of the grid is nobody's mode
    rare = torch.cat([points[1:25].repeat(100, 1), points[:1].repeat(15, 1)])
    assert modes(rare)[1] == 24, "15 points of 2,415 are less than a fifth of a fair share"


# -- the gate -------------------------------------------------------------------------------------------------------------

POINTS = Measurement(
    swd=0.05, c2st=0.52, energy=0.1, precision=0.97, recall=0.95, rmse=0.1, duplicates=0.0, modes=25, on_modes=0.99
)
IMAGES = dataclasses.replace(POINTS, modes=None, on_modes=None, feature_frechet=5.0, label_accuracy=0.98)


def yardstick(good: Measurement) -> Yardstick:
    """The floor is good; the naive solver and the Gaussian are what they are on real problems."""
    solver = dataclasses.replace(good, swd=0.2, c2st=0.7, rmse=0.2)
    gaussian = dataclasses.replace(good, swd=0.2, c2st=0.75, energy=1.4, rmse=1.4)
    if good.feature_frechet is not None:
        solver = dataclasses.replace(solver, feature_frechet=10.0)
        gaussian = dataclasses.replace(gaussian, feature_frechet=70.0)
    return Yardstick(floor=good, gaussian=gaussian, baselines={"teacher ddim": solver, "gaussian fit": gaussian})


@pytest.mark.parametrize("good", [POINTS, IMAGES], ids=["points", "images"])
def test_the_floor_passes(good):
    assert verdict(good, yardstick(good), follows_trajectory=True) == {}


@pytest.mark.parametrize(
    ("good", "changes"),
    [
        (POINTS, {"swd": 0.131}),
        (POINTS, {"c2st": 0.61}),
        (POINTS, {"modes": 22}),
        (POINTS, {"rmse": 0.151}),
        (IMAGES, {"c2st": 0.7}),
        (IMAGES, {"feature_frechet": 10.1}),
        (IMAGES, {"label_accuracy": 0.959}),
        (IMAGES, {"rmse": 0.201}),
        *((good, {"energy": 0.71}) for good in (POINTS, IMAGES)),
        *((good, {"energy": 0.024}) for good in (POINTS, IMAGES)),
        *((good, {"energy": math.nan}) for good in (POINTS, IMAGES)),
        *((good, {"recall": 0.75}) for good in (POINTS, IMAGES)),
        *((good, {"duplicates": 0.001}) for good in (POINTS, IMAGES)),
    ],
)
def test_every_measure_alone_can_fail(good, changes):
    failures = verdict(dataclasses.replace(good, **changes), yardstick(good), follows_trajectory=True)
    assert set(failures) == set(changes)


def test_pairing_binds_only_those_who_claim_it():
    unpaired = dataclasses.replace(POINTS, rmse=1.4)
    assert verdict(unpaired, yardstick(POINTS), follows_trajectory=False) == {}


# -- an exact student and the cheats: points ------------------------------------------------------------------------------


def tables() -> dict[int, object]:
    """Few steps of a naive solver, and many of a good one."""
    return {n: solver(PROCESS, V, [1.0 - i / n for i in range(n)]) for n, solver in ((4, ddim), (32, dpmpp_2m))}


@pytest.fixture(scope="module")
def points(mixture_student: Student) -> tuple[QualityBench, Student, Yardstick]:
    """The exact teacher of the 25 Gaussians as yardstick, itself at 32 good steps as a student that claims 4."""
    torch.set_num_threads(1)
    spec = dataclasses.replace(
        mixture_student.spec, plans=tables(), networks=(NetworkSpec(kind="mlp", config={"in_channels": 2}),)
    )
    student = dataclasses.replace(mixture_student, spec=spec)
    bench = QualityBench(mixture_student, Grid25(), num_samples=1500)
    return bench, student, measure_yardstick(bench, student, 32, baseline_steps=4)


def test_an_exact_student_passes(points):
    bench, student, held = points
    measured = bench.measure(bench.student_samples(student, 32))
    assert verdict(measured, held, follows_trajectory=True) == {}
    assert measured.modes == 25
    assert abs(measured.c2st - 0.5) < 0.05
    assert measured.rmse < 0.05


def test_the_floor_of_the_yardstick(points):
    """Other samples of the same teacher: indistinguishable, but not the same images."""
    _, _, held = points
    assert abs(held.floor.c2st - 0.5) < 0.05
    assert held.floor.modes == 25
    assert held.floor.on_modes > 0.98
    assert min(held.floor.precision, held.floor.recall) > 0.93
    assert held.floor.rmse == pytest.approx(math.sqrt(2), abs=0.1)  # two independent draws of unit variance


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_every_control_fails_even_where_pairing_does_not_bind(points, name):
    bench, student, held = points
    measured = bench.measure(CONTROLS[name](bench, student, 4))
    failures = verdict(measured, held, follows_trajectory=False)
    assert failures, measured
    expected = {
        "gaussian fit": {"swd", "c2st", "modes", "energy"},
        "untrained student": {"swd", "c2st", "modes"},
        "teacher as student": {"swd", "c2st", "modes"},
        "memoriser": {"duplicates"},
        "mean image": {"swd", "c2st", "modes", "energy", "recall", "duplicates"},
    }[name]
    assert expected <= set(failures)


def test_dropped_modes_and_blurred_points_fail(points):
    bench, _, held = points
    fine = bench.fresh.flip(0)
    assert verdict(bench.measure(fine + 0), held, follows_trajectory=False) == {}
    kept = fine[(fine[:, 0, 0, 0] > -1.1)]  # a column of five modes is gone
    dropped = torch.cat([kept, kept[: len(fine) - len(kept)] + 1e-3 * normal(len(fine) - len(kept), 2, 1, 1)])
    failures = verdict(bench.measure(dropped), held, follows_trajectory=False)
    assert {"modes", "recall"} & set(failures), failures
    blurred = fine + 5 * Grid25.mode_std * normal(*fine.shape)
    failures = verdict(bench.measure(blurred), held, follows_trajectory=False)
    assert {"modes", "c2st"} <= set(failures), failures


# -- an exact student and the cheats: labelled images ---------------------------------------------------------------------


class DigitsTeacher(nn.Module):
    """Exact denoiser, in v prediction, of the data set's own images with Gaussian noise of deviation 0.1, by label."""

    STD = 0.1

    def __init__(self) -> None:
        super().__init__()
        data = digits()
        assert data.label_N is not None
        self.register_buffer("images_ND", data.x0_NCHW.flatten(1))
        self.register_buffer("label_N", data.label_N)

    def forward(self, x: Tensor, time_B: Tensor, label_B: Tensor) -> Tensor:
        t_B = PROCESS.t_from_model_time(time_B)
        level = PROCESS.at(t_B)
        alpha, variance = level.alpha[:, None], (level.alpha**2 * self.STD**2 + level.sigma**2)[:, None]
        points = x.flatten(1)
        squared = points.square().sum(1, keepdim=True) - 2 * alpha * points @ self.images_ND.T
        squared = squared + alpha**2 * self.images_ND.square().sum(1)
        other = self.label_N != label_B[:, None]
        mean = torch.softmax((-0.5 * squared / variance).masked_fill(other, -torch.inf), dim=1) @ self.images_ND
        x0 = mean + alpha * self.STD**2 / variance * (points - alpha * mean)
        return v_from_x0(PROCESS, x, x0.reshape(x.shape), t_B)


@pytest.fixture(scope="module")
def images() -> tuple[QualityBench, Student, Yardstick]:
    torch.set_num_threads(1)
    spec = StudentSpec(
        name="digits",
        sample_shape=(1, 8, 8),
        process=PROCESS,
        parameterization=V,
        condition=Condition(kind="label", num_classes=10),
        plans=tables(),
        default_steps=4,
        networks=(NetworkSpec(kind="mlp", config={"in_channels": 64, "num_labels": 10}),),
    )
    exact = Student(spec=spec, networks=(DigitsTeacher(),), digest="0" * 64, path=Path("digits"))
    bench = QualityBench(exact, digits(), num_samples=600)
    return bench, exact, measure_yardstick(bench, exact, 32, baseline_steps=4)


def test_an_exact_student_of_images_passes_and_shuffled_labels_do_not(images):
    bench, student, held = images
    assert bench.classifier.held_out_accuracy > 0.95
    samples = bench.student_samples(student, 32)
    measured = bench.measure(samples)
    assert verdict(measured, held, follows_trajectory=True) == {}
    assert measured.label_accuracy > 0.97
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    shuffled = [bench.labels[i] for i in order]
    failures = verdict(bench.measure(samples, labels=shuffled), held, follows_trajectory=True)
    assert {"label_accuracy", "energy"} <= set(failures), failures


@pytest.mark.parametrize("name", ["memoriser", "teacher as student"])
def test_controls_that_look_like_the_teacher_fail_on_images(images, name):
    bench, student, held = images
    measured = bench.measure(CONTROLS[name](bench, student, 4))
    assert measured.label_accuracy > 0.97, "they are right in this"
    failures = verdict(measured, held, follows_trajectory=True)
    assert {"memoriser": "duplicates", "teacher as student": "feature_frechet"}[name] in failures
