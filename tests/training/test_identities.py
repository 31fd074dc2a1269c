"""Tier 0: equalities that hold exactly, whatever the weights."""

import dataclasses

import pytest
import torch
from closed_forms import PROCESS, AffinePerTime, GaussianTeacher, V, plain_spec

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import Parameterization, Prediction
from distill_rt.models import build_network
from distill_rt.training.data import Batch, Grid25
from distill_rt.training.draws import Draws
from distill_rt.training.methods import METHODS, Consistency, GuidanceDistillation, Progressive
from distill_rt.training.methods.guidance import guidance_loss
from distill_rt.training.methods.progressive import halving_loss
from distill_rt.training.predictor import Conditions, Predictor, Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.student import student_network

FEWER_STEPS = sorted(set(METHODS) - {"feature_kd", "bk_sdm"})
"""Methods whose students take fewer steps; a smaller network is its teacher's equal in other ways (test_feature_kd.py)."""


@pytest.fixture(scope="module")
def labelled_teacher():
    spec = RECIPES["grid25-labelled-teacher"]().spec
    torch.manual_seed(0)
    network = build_network(spec.networks[0])
    for parameter in network.parameters():  # diffusers' zero-initialised layers would hide differences
        torch.nn.init.normal_(parameter, std=0.2)
    return Teacher(spec, network)


def batch_of(size: int, *, labelled: bool) -> tuple[Batch, Draws]:
    draws = Draws(7, 0, size)
    return Grid25(labelled=labelled).batch(draws), draws


@pytest.mark.parametrize("name", FEWER_STEPS)
def test_a_new_student_is_exactly_its_conditional_teacher(labelled_teacher, name):
    spec = METHODS[name]().contract(labelled_teacher.spec)
    student = student_network(labelled_teacher, spec)
    x, t, s = torch.randn(5, 2, 1, 1), torch.rand(5), torch.rand(5) if spec.uses_second_time else None
    label = torch.tensor([0, 1, 2, 3, 4])
    for w in (1.0, 2.5):
        w_B = torch.full((5,), w) if spec.guidance.mode == "embedded" else None
        conditions = Conditions(label_B=label, w_B=w_B, second_time_B=s)
        out = Predictor.of(spec, student).x0(x, t, conditions)
        expected = labelled_teacher.predictor.x0(x, t, Conditions(label_B=label))
        assert torch.equal(out, expected)


def test_neutral_guidance_is_the_conditional_teacher(labelled_teacher):
    x, t, label = torch.randn(5, 2, 1, 1), torch.rand(5), torch.tensor([0, 1, 2, 3, 4])
    guided = labelled_teacher.x0(x, t, Conditions(label_B=label, w_B=torch.ones(5)))
    torch.testing.assert_close(
        guided, labelled_teacher.predictor.x0(x, t, Conditions(label_B=label)), rtol=1e-4, atol=1e-4
    )
    unguided = labelled_teacher.x0(x, t, Conditions(label_B=label, w_B=torch.zeros(5)))
    nobody = torch.full_like(label, 5)
    torch.testing.assert_close(
        unguided, labelled_teacher.predictor.x0(x, t, Conditions(label_B=nobody)), rtol=1e-4, atol=1e-4
    )


def test_guidance_loss_is_zero_where_the_student_is_the_guided_teacher(labelled_teacher):
    batch, draws = batch_of(32, labelled=True)

    class Guided(torch.nn.Module):
        def forward(self, x, time, label, w):
            both = labelled_teacher.network(
                torch.cat([x, x]), torch.cat([time, time]), torch.cat([torch.full_like(label, 5), label])
            )
            F_u, F_c = both.chunk(2)
            return F_u + w[:, None, None, None] * (F_c - F_u)

    assert guidance_loss(Guided(), labelled_teacher, batch, draws) < 1e-8
    assert guidance_loss(student_network(labelled_teacher, GuidanceDistillation().contract(labelled_teacher.spec)),
                         labelled_teacher, batch, draws) > 1e-4  # fmt: skip


def test_halving_loss_is_zero_for_a_teacher_whose_steps_compose():
    """With a constant x0 every DDIM path is straight: two half jumps are one jump, so the teacher is its own student."""

    class Constant(torch.nn.Module):
        def forward(self, x, time):
            t = PROCESS.t_from_model_time(time)
            return V.target(x, torch.full_like(x, 0.3), PROCESS.at(t).like(x))

    teacher = Teacher(plain_spec(2), Constant())
    for num_steps in (1, 4, 16):
        batch, draws = batch_of(64, labelled=False)
        assert halving_loss(Constant(), teacher, num_steps, batch, draws) < 1e-6


def test_a_halved_student_lands_where_two_teacher_steps_land():
    """The closed-form answer: solve for x0 at one point, jump once, compare with two exact jumps."""
    teacher = Teacher(plain_spec(3), GaussianTeacher([0.5, -0.3, 0.1], [1.0, 0.5, 0.2]))
    x = torch.randn(16, 3, 1, 1, dtype=torch.float64)
    one, middle, zero = (torch.full((16,), v, dtype=torch.float64) for v in (0.75, 0.625, 0.5))
    two_steps = teacher.step(teacher.step(x, one, middle, Conditions()), middle, zero, Conditions())
    from distill_rt.core.prediction import inverse_ddim_target

    target = inverse_ddim_target(x, two_steps, PROCESS.at(one), PROCESS.at(zero))
    torch.testing.assert_close(teacher.step_with(x, target, one, zero), two_steps, rtol=1e-12, atol=1e-12)


def test_teacher_steps_converge_at_their_order():
    """Against the closed-form flow of a Gaussian from t = 0.9 to t = 0.1."""
    exact = GaussianTeacher([0.5, -0.3, 0.1], [1.0, 0.5, 0.2])
    teacher = Teacher(plain_spec(3), exact)
    x_start = torch.randn(64, 3, 1, 1, dtype=torch.float64)
    expected = exact.flow(x_start, 0.9, 0.1)
    errors = {}
    for order in (1, 2):
        for n in (32, 64):
            x = x_start
            for i in range(n):
                t, s = (torch.full((64,), 0.9 - 0.8 * (i + k) / n, dtype=torch.float64) for k in (0, 1))
                x = teacher.step(x, t, s, Conditions(), order=order)
            errors[order, n] = float((x - expected).abs().max())
    assert 1.8 < errors[1, 32] / errors[1, 64] < 2.2
    assert 3.6 < errors[2, 32] / errors[2, 64] < 4.4


@pytest.mark.parametrize("pairs", ["fixed", "ect"])
def test_a_consistency_student_returns_its_input_at_the_data_end(pairs):
    """The boundary f(x, 0) = x holds by construction in v prediction."""
    spec = plain_spec(2)
    x = torch.randn(8, 2, 1, 1)
    network = AffinePerTime(4, 2)
    torch.nn.init.normal_(network.weight)
    x0 = Predictor.of(spec, network).x0(x, torch.zeros(8), Conditions())
    torch.testing.assert_close(x0, x, rtol=0, atol=5e-4)  # the process ends at log SNR 20, not at infinity
    assert Consistency(pairs=pairs).phases(spec)


def test_methods_refuse_teachers_they_cannot_use():
    unguided = plain_spec(2)
    with pytest.raises(UsageError, match="guided by two evaluations"):
        GuidanceDistillation().phases(unguided)
    plain_x0 = dataclasses.replace(unguided, parameterization=Parameterization(prediction=Prediction.X0))
    with pytest.raises(UsageError, match="return its input"):
        Consistency().phases(plain_x0)
    with pytest.raises(UsageError, match="times 2, 4, 8"):
        Progressive(steps=4, start_steps=12)


@pytest.mark.parametrize("name", FEWER_STEPS)
def test_contracts_hold_their_own_tables(labelled_teacher, name):
    method = METHODS[name]()
    spec = method.contract(labelled_teacher.spec)
    assert spec.default_steps == method.steps
    for num_steps, table in spec.plans.items():
        assert table.num_evaluations == num_steps
    # Who learns from data alone, or one scale, offers no guidance: there is no input for it. A teacher with another table stays
    # guided.
    kinds = {
        "none": ("consistency_training", "ect", "imm", "dice"),
        "cfg": ("gits", "bespoke"),
    }
    guided = next((kind for kind, names in kinds.items() if name in names), "embedded")
    assert spec.guidance.mode == guided
    assert spec.networks[0].config.get("guidance", False) is (guided == "embedded")
