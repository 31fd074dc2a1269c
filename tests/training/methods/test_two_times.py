"""Students that know two times, on Gaussian data: every plan must be the exact flow."""

import pytest
import torch
from closed_forms import plain_spec
from gaussian_fit import AffineOfTime, GaussianData, denoiser, exact_teacher, fit, relative, run, start_at, unit

from distill_rt.core.errors import UsageError
from distill_rt.models import build_network
from distill_rt.training.copies import frozen_copy
from distill_rt.training.draws import Draws
from distill_rt.training.methods import ConsistencyTrajectory, InductiveMomentMatching, Shortcut
from distill_rt.training.methods.imm import laplace_mmd
from distill_rt.training.predictor import Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.student import student_network


@pytest.fixture
def teacher():
    return Teacher(plain_spec(3), exact_teacher())


@pytest.mark.parametrize(
    ("method", "bound"),
    [
        (ConsistencyTrajectory(steps=4, num_levels=16, huber=0.3), 0.05),
        (Shortcut(steps=4, finest=16, target_decay=0.9), 0.05),
    ],
    ids=["ctm", "shortcut"],
)
def test_every_plan_is_the_exact_flow(teacher, method, bound):
    student = start_at(AffineOfTime(3, num_times=2, num_knots=17), denoiser)
    plans = method.contract(teacher.spec).plans
    z, flow = unit(), exact_teacher().flow(unit())
    assert sorted(plans) == [1, 2, 4]
    for table in plans.values():
        assert not table.is_stochastic
        assert relative(run(student, table, z), flow) > 0.1
    networks = {"student": student, "target": frozen_copy(student)}
    fit(method, method.phases(teacher.spec)[0], networks, teacher, iterations=1000, learning_rate=2e-2)
    for table in plans.values():
        assert relative(run(student, table, z), flow) < bound


@pytest.mark.parametrize("share", [0.0, 0.15, 0.5])
def test_a_share_of_the_jumps_goes_to_the_end(teacher, share):
    """Beside those that reach it by chance: one of i for a jump from level i."""
    method, asked = ConsistencyTrajectory(num_levels=24, end_share=share), []
    student = start_at(AffineOfTime(3, num_times=2, num_knots=13), denoiser)
    student.register_forward_pre_hook(lambda module, inputs: asked.append(inputs[2]))
    networks = {"student": student, "target": frozen_copy(student)}
    draws = Draws(0, 0, 4096)
    method.losses(method.phases(teacher.spec)[0], 0, networks, teacher, GaussianData().batch(draws), draws)
    by_chance = sum(1 / i for i in range(1, 25)) / 24
    assert (asked[0] == asked[0].min()).float().mean() == pytest.approx(share + (1 - share) * by_chance, abs=0.03)


def test_inductive_moment_matching_makes_the_data(teacher):
    method = InductiveMomentMatching(steps=1, group=16, shrink=0.7)
    student = start_at(AffineOfTime(3, num_times=2, num_knots=13), denoiser)
    table = method.contract(teacher.spec).plans[1]
    z = unit(4096)
    mean, std = exact_teacher().mean.flatten(), exact_teacher().std.flatten()
    assert run(student, table, z).flatten(1).std(0).max() < 0.1, "the denoiser of pure noise answers the mean"
    fit(method, method.phases(teacher.spec)[0], {"student": student}, teacher, iterations=1200, learning_rate=2e-2)
    made = run(student, table, z).flatten(1)
    torch.testing.assert_close(made.mean(0), mean, atol=0.1, rtol=0.0)
    torch.testing.assert_close(made.std(0), std, atol=0.12, rtol=0.0)


def test_discrepancy_of_equal_groups_is_zero_and_grows_with_distance():
    a = torch.randn(32, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    ones = torch.ones(32)
    torch.testing.assert_close(laplace_mmd(a, a, ones, 8), torch.zeros(4), atol=1e-6, rtol=0.0)
    near, far = (laplace_mmd(a, a + shift, ones, 8) for shift in (0.1, 1.0))
    assert (near > 0).all()
    assert (near < far).all()
    torch.testing.assert_close(laplace_mmd(2 * a, 2 * (a + 1), 2 * ones, 8), far, atol=1e-6, rtol=1e-4)


def test_a_second_time_has_no_influence_at_the_start():
    """And fast features of it would: the branch divides by the network's time units (1,000 for one unit of t)."""
    spec = RECIPES["grid25-teacher"]().spec
    torch.manual_seed(0)
    network = build_network(spec.networks[0])
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    contract = Shortcut().contract(spec)
    student = student_network(Teacher(spec, network), contract)
    assert student.second_time.scale == pytest.approx(1000.0, rel=1e-3)
    x, t = torch.randn(6, 2, 1, 1), 1000 * torch.rand(6)
    torch.testing.assert_close(student(x, t, 1000 * torch.rand(6)), network(x, t), rtol=0, atol=0)
    torch.nn.init.normal_(student.second_time.out.weight)
    a, b, c = (student(x, t, torch.full((6,), s)) for s in (0.0, 1.0, 1000.0))
    assert 0 < (a - b).abs().max() < 0.1 * (a - c).abs().max()


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        (ConsistencyTrajectory, {"num_levels": 1}),
        (ConsistencyTrajectory, {"solver_order": 0}),
        (ConsistencyTrajectory, {"huber": 0.0}),
        (ConsistencyTrajectory, {"target_decay": -0.1}),
        (ConsistencyTrajectory, {"end_share": 1.0}),
        (Shortcut, {"finest": 12}),
        (Shortcut, {"steps": 3}),
        (Shortcut, {"steps": 64}),
        (Shortcut, {"bootstrap": 1.0}),
        (Shortcut, {"target_decay": 1.0}),
        (InductiveMomentMatching, {"group": 1}),
        (InductiveMomentMatching, {"batch_size": 100}),
        (InductiveMomentMatching, {"shrink": 1.0}),
    ],
)
def test_settings_out_of_range(method, wrong):
    with pytest.raises(UsageError):
        method(**wrong)


def test_two_times_are_learned_from_one(teacher):
    spec = Shortcut().contract(teacher.spec)
    with pytest.raises(UsageError, match="two times"):
        Shortcut().contract(spec)
