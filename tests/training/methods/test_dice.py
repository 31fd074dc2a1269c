"""Guidance distilled into the label: exact where a sharper label can say it, one evaluation, nothing but the table changes."""

import dataclasses

import pytest
import torch
from closed_forms import PROCESS, V, plain_spec
from contracts import CFG, LABELLED
from torch import nn

from distill_rt.core.errors import UsageError
from distill_rt.models import load_student
from distill_rt.models.conditioned import ConditionedNetwork
from distill_rt.training.data import Batch
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.methods.dice import ConditionSharpening, Sharpener, label_table
from distill_rt.training.predictor import Conditions, Predictor, Teacher
from distill_rt.training.run import distill, train


class LinearInLabel(nn.Module):
    """v = x + vector: guidance over it is the same network under another vector, c' = null + w (c - null)."""

    def forward(self, sample, time, class_labels):
        class Output:
            pass

        out = Output()
        out.sample = sample + class_labels[:, :2, None, None]
        return out


def linear_teacher():
    torch.manual_seed(0)
    network = ConditionedNetwork(LinearInLabel(), 4, num_labels=11)
    nn.init.normal_(network.label.weight)
    return Teacher(dataclasses.replace(plain_spec(2), condition=LABELLED, guidance=CFG), network)


def labelled(draws):
    x0 = draws.normal((2, 1, 1), Purpose.DATA)
    return Batch(x0_BCHW=x0, label_B=draws.integers(0, 10, Purpose.INDEX))


def test_a_label_that_can_say_it_learns_the_guided_answer_exactly():
    """Where the denoiser is linear in the embedding, c' is known: null + w (c - null)."""
    teacher, method = linear_teacher(), ConditionSharpening(w=3.0, hidden=64)
    table = teacher.network.label.weight.detach()
    sharpener = Sharpener(table, 10, 64)
    assert torch.equal(sharpener(), table)
    (phase,) = method.phases(teacher.spec)
    networks = {"student": ConditionedNetwork(LinearInLabel(), 4, num_labels=11), "sharpener": sharpener}
    optimizer = torch.optim.Adam(sharpener.parameters(), lr=1e-2)
    for step in range(600):
        draws = Draws(0, step, 128)
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 600)
        losses = method.losses(phase, step, networks, teacher, labelled(draws), draws)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        method.after_step(phase, step, networks)
    wanted = table[10] + 3.0 * (table - table[10])
    learned = label_table(networks["student"]).detach()
    torch.testing.assert_close(learned[:10, :2], wanted[:10, :2], atol=0.05, rtol=0.0)
    assert torch.equal(learned[10], table[10]), "the null label stays"
    # One evaluation of the student is the guided teacher.
    draws = Draws(1, 0, 64)
    batch, t_B = labelled(draws), draws.uniform(Purpose.TIME)
    x_t = PROCESS.add_noise(batch.x0_BCHW, draws.normal((2, 1, 1)), t_B)
    guided = teacher.x0(x_t, t_B, Conditions(label_B=batch.label_B, w_B=torch.full((64,), 3.0)))
    x0 = Predictor(network=networks["student"], process=PROCESS, parameterization=V).x0(
        x_t, t_B, Conditions(label_B=batch.label_B)
    )
    torch.testing.assert_close(x0, guided, atol=0.05, rtol=0.0)


def test_without_guidance_the_loss_is_zero_from_the_start():
    """w = 1 asks for the conditional teacher, which the student is; and the raw output is what is compared."""
    teacher = linear_teacher()
    draws = Draws(0, 0, 32)
    networks = {"sharpener": Sharpener(teacher.network.label.weight, 10, 8)}

    def loss(w):
        method = ConditionSharpening(w=w)
        (phase,) = method.phases(teacher.spec)
        return float(method.losses(phase, 0, networks, teacher, labelled(draws), draws)["dice"].detach())

    assert loss(1.0) < 1e-10
    table, label_B = teacher.network.label.weight, labelled(draws).label_B
    expected = (table[label_B] - table[10])[:, :2].square().mean()  # (w - 1)^2 with w = 2, the contract's default
    assert loss(0.0) == pytest.approx(float(expected), rel=1e-3)


def test_nothing_but_the_table_changes(tmp_path):
    train("grid25-labelled-teacher", tmp_path / "teacher", settings={"steps": "40", "batch_size": "32"})
    settings = {"iterations": "5", "batch_size": "16", "w": "2.5"}
    made = distill("dice", tmp_path / "teacher", tmp_path / "student", steps=2, settings=settings)
    teacher, student = load_student(tmp_path / "teacher"), load_student(tmp_path / "student")
    theirs, ours = teacher.networks[0].state_dict(), student.networks[0].state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == ["label.weight"]
    assert made["steps"] == [2, 4, 8, 16]
    guidance = student.spec.guidance
    assert (guidance.mode, guidance.min, guidance.max, guidance.default) == ("none", 2.5, 2.5, 2.5)


def test_what_cannot_be_sharpened():
    with pytest.raises(UsageError, match="guided by two evaluations"):
        ConditionSharpening().phases(plain_spec(2))
    with pytest.raises(UsageError, match="outside of the contract"):
        ConditionSharpening(w=7.0).contract(linear_teacher().spec)
    for wrong in ({"steps": 0}, {"hidden": 0}):
        with pytest.raises(UsageError):
            ConditionSharpening(**wrong)
