"""Consistency models from data and from teachers: the laws of their pairs, and the exact flow that all must reach."""

import pytest
import torch
from closed_forms import PROCESS, plain_spec
from gaussian_fit import AffineOfTime, denoiser, exact_teacher, fit, relative, run, start_at, unit

from distill_rt.core.errors import UsageError
from distill_rt.training.consistency import MAX_RATIO, MIN_RATIO, ect_pair, grid_pair, growing_exponent, ict_pair
from distill_rt.training.draws import Draws
from distill_rt.training.methods import Consistency, ConsistencyTraining, EasyConsistencyTuning
from distill_rt.training.predictor import Teacher


@pytest.mark.parametrize(
    ("method", "bound"),
    [
        (Consistency(steps=1, pairs="ect", first_exponent=2, last_exponent=4, huber=1.0, iterations=1500), 0.04),
        (EasyConsistencyTuning(steps=1, first_exponent=2, last_exponent=6, huber=1.0, iterations=1500), 0.1),
        (ConsistencyTraining(steps=1, first_levels=10, last_levels=80, huber=1.0, iterations=1500), 0.1),
    ],
    ids=["ecd", "ect", "consistency_training"],
)
def test_one_step_is_the_exact_flow(method, bound):
    """From the denoiser, as they all start; pairs of the data's own noise keep the bias of their distance."""
    teacher = Teacher(plain_spec(3), exact_teacher())
    student = start_at(AffineOfTime(3), denoiser)
    (phase,) = method.phases(teacher.spec)
    z = unit()
    table, flow = method.contract(teacher.spec).plans[1], exact_teacher().flow(z)
    assert relative(run(student, table, z), flow) > 0.9
    networks = {"student": student, "target": student}
    fit(method, phase, networks, teacher, iterations=method.iterations, learning_rate=1e-2)
    assert relative(run(student, table, z), flow) < bound


@pytest.mark.parametrize("law", ["ect", "ict", "grid"])
def test_pairs_of_times_fall_and_stay_inside(law):
    draws = Draws(0, 0, 4096)
    pair = {"ect": lambda: ect_pair(PROCESS, 3, draws), "ict": lambda: ict_pair(PROCESS, 40, draws),
            "grid": lambda: grid_pair(24, draws)}[law]  # fmt: skip
    t_B, s_B, weight_B = pair()
    assert ((s_B < t_B) & (s_B >= 0.0) & (t_B <= 1.0)).all()
    assert torch.isfinite(weight_B).all()
    assert (weight_B > 0).all()


def test_ict_draws_neighbours_with_the_log_normal_law():
    """The share of levels below ratio 1, the median of the law, is one half (limited to the grid's range)."""
    t_B, s_B, weight_B = ict_pair(PROCESS, 1281, Draws(0, 0, 65536))
    ratio_B, next_B = PROCESS.sigma_ratio(t_B), PROCESS.sigma_ratio(s_B)
    assert float((ratio_B < 1.0).float().mean()) == pytest.approx(0.5, abs=0.02)
    assert ratio_B.max() <= MAX_RATIO * 1.01
    assert next_B.min() >= MIN_RATIO * 0.9
    torch.testing.assert_close(1.0 / weight_B, ratio_B - next_B, rtol=0.05, atol=1e-3)
    roots = torch.sort(torch.unique((ratio_B ** (1 / 7) * 1e4).round())).values
    assert len(roots) > 100, "many levels are drawn"


def test_levels_double_and_end_at_the_last():
    method = ConsistencyTraining(first_levels=10, last_levels=160)
    counts = [method.num_levels(k / 100) for k in range(100)]
    assert sorted(set(counts)) == [11, 21, 41, 81, 161]
    assert counts == sorted(counts)
    assert counts.count(11) == counts.count(161) == 20
    assert [growing_exponent(1, 3, p) for p in (0.0, 0.3, 0.4, 0.99)] == [1, 1, 2, 3]


def test_ect_pairs_close_up():
    gaps = []
    for k in (1, 3, 5):
        t_B, s_B, _ = ect_pair(PROCESS, k, Draws(0, 0, 1024))
        gaps.append(float((t_B - s_B).mean()))
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        (EasyConsistencyTuning, {"steps": 0}),
        (EasyConsistencyTuning, {"first_exponent": 3, "last_exponent": 2}),
        (ConsistencyTraining, {"steps": 0}),
        (ConsistencyTraining, {"first_levels": 1}),
        (Consistency, {"num_levels": 1}),
        (Consistency, {"solver_order": 3}),
    ],
)
def test_settings_out_of_range(method, wrong):
    with pytest.raises(UsageError):
        method(**wrong)
