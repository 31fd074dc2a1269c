"""Catch-up distillation on Gaussian data, where the velocity on which both terms agree is known."""

import pytest
import torch
from closed_forms import PROCESS, plain_spec
from gaussian_fit import (
    MEAN,
    STD,
    AffineOfTime,
    GaussianData,
    denoiser,
    exact_teacher,
    fit,
    relative,
    run,
    start_at,
    unit,
)

from distill_rt.core.errors import UsageError
from distill_rt.training.copies import frozen_copy
from distill_rt.training.draws import Draws
from distill_rt.training.flow_map import flow_time, t_from_flow_time, velocity
from distill_rt.training.methods.catch_up import CatchUp
from distill_rt.training.predictor import Conditions, Predictor, Teacher


@pytest.fixture
def teacher():
    return Teacher(plain_spec(3), exact_teacher())


def agreed(tau: float, length: float, share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(a, b) of the velocity a y + b that solves v(y) = share v'(y - h v(y)) + (1 - share) u(y), v' the one at tau - h."""
    mean, std = torch.tensor(MEAN).double(), torch.tensor(STD).double()
    gain = (1 - tau) * std**2 / ((1 - tau) ** 2 * std**2 + tau**2)
    # u = (y - x0) / tau with x0 = mean + gain (y - (1 - tau) mean)
    a, b = (1 - gain) / tau, -(1 - gain * (1 - tau)) * mean / tau
    if tau <= length:
        return a, b
    a_later, b_later = agreed(tau - length, length, share)
    both = 1 + share * length * a_later
    return (share * a_later + (1 - share) * a) / both, (share * b_later + (1 - share) * b) / both


@pytest.mark.parametrize("weight", [1.0, 4.0])
def test_the_velocity_is_the_one_on_which_both_terms_agree(teacher, weight):
    method = CatchUp(steps=4, lengths="fixed", path="student", longest=0.125, weight=weight, target_decay=0.5)
    assert method.share() == weight / (weight + 1)
    student = start_at(AffineOfTime(3, num_knots=49), denoiser)
    networks = {"student": student, "target": frozen_copy(student)}
    fit(method, method.phases(teacher.spec)[0], networks, teacher, iterations=700, learning_rate=2e-2)
    z = unit()
    for tau in (0.9, 0.7, 0.45, 0.3):
        t_B = torch.full((len(z),), float(t_from_flow_time(PROCESS, tau)))
        level = PROCESS.at(t_B).like(z)
        a, b = agreed(tau, 0.125, method.share())
        wanted = a[:, None, None] * (z / (level.alpha + level.sigma)) + b[:, None, None]
        v = velocity(PROCESS, z, Predictor.of(teacher.spec, student).x0(z, t_B, Conditions()), t_B).detach()
        before = velocity(PROCESS, z, denoiser(z, float(t_B[0])), t_B)
        assert relative(v, wanted) < 0.05
        assert relative(v, wanted) < 0.3 * relative(before, wanted)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(
    ("settings", "left"),
    [({"longest": 0.125}, 0.15), ({"lengths": "uniform", "longest": 0.125, "path": "student"}, 0.4)],
    ids=["what is left of the step", "half a step ahead"],
)
def test_few_steps_come_near_the_flow(teacher, steps, settings, left):
    method = CatchUp(steps=steps, **settings)
    student = start_at(AffineOfTime(3, num_knots=49), denoiser)
    table, z = method.contract(teacher.spec).plans[steps], unit()
    flow = exact_teacher().flow(z)
    before = relative(run(student, table, z), flow)
    networks = {"student": student, "target": frozen_copy(student)}
    fit(method, method.phases(teacher.spec)[0], networks, teacher, iterations=700, learning_rate=2e-2)
    assert relative(run(student, table, z), flow) < left * before


def test_a_short_step_leaves_its_share_of_the_step_and_stays_in_it():
    method, draws = CatchUp(steps=2, longest=0.125), Draws(0, 0, 5)
    assert method.share() == 1.0 - 0.125
    # A time of the plan, one just above it, which still belongs to the step below, one whose short step ends there, two others.
    ahead, reaches = method.ahead(torch.tensor([0.5, 0.54, 0.565, 0.6, 1.0]), draws)
    torch.testing.assert_close(ahead, torch.tensor([0.4375, 0.4725, 0.556875, 0.5875, 0.9375]))
    assert reaches.tolist() == [True, True, False, True, True]


def test_the_start_is_the_teacher_and_the_slow_copy_is_slow(teacher):
    method = CatchUp(steps=2, lengths="uniform", longest=0.125, path="student", target_decay=0.75)
    assert method.share() == pytest.approx(4.0 / 5.0)
    student = start_at(AffineOfTime(3), denoiser)
    networks = {"student": student, "target": frozen_copy(student)}
    (phase,) = method.phases(teacher.spec)
    draws = Draws(0, 0, 64)
    losses = method.losses(phase, 0, networks, teacher, GaussianData().batch(draws), draws)
    assert losses["teacher"].item() < 1e-3 < losses["catch_up"].item()
    losses["catch_up"].backward()
    assert all(value.grad is None for value in networks["target"].parameters())
    with torch.no_grad():
        student.weight += 1.0
    before = networks["target"].weight.clone()
    method.after_step(phase, 1000, networks)
    torch.testing.assert_close(networks["target"].weight, before + 0.25)
    assert float(flow_time(PROCESS, torch.tensor(0.5))) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "wrong", [{"steps": 0}, {"longest": 0.0}, {"longest": 1.0}, {"weight": -1.0}, {"target_decay": 1.0}]
)
def test_settings_out_of_range(wrong):
    with pytest.raises(UsageError):
        CatchUp(**wrong)
