"""Smaller students: identities at step 0, the states they are taught at, the contract that they keep."""

import dataclasses

import pytest
import torch
from torch import nn

from distill_rt.core.errors import UsageError
from distill_rt.core.samplers.consistency import multistep_consistency
from distill_rt.models import build_network
from distill_rt.training.config import TrainConfig
from distill_rt.training.data import Grid25, digits
from distill_rt.training.draws import Draws
from distill_rt.training.methods import Boot, FeatureKD, Progressive, ScoreIdentity, TrajectoryDistributionMatching
from distill_rt.training.methods.feature_kd import Pair, feature_kd_loss, noised_inputs, visited_inputs
from distill_rt.training.predictor import Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.smaller import Smaller
from distill_rt.training.trainer import Trainer

STATES = pytest.mark.parametrize("states", ["student", "teacher", "data"])


def teacher_of(recipe, **changes):
    """A student with random weights: of the recipe's contract (guided by two evaluations), or of Progressive(4)."""
    spec = dataclasses.replace(RECIPES[recipe]().spec, **changes)
    torch.manual_seed(0)
    network = build_network(spec.networks[0])
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return Teacher(spec, network)


def few_step(recipe):
    spec = Progressive(steps=4).contract(RECIPES[recipe]().spec)
    return teacher_of(recipe, **{field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)})


@pytest.fixture(scope="module")
def grid():
    return few_step("grid25-labelled-teacher")


@pytest.fixture(scope="module")
def small_unet():
    return few_step("digits-teacher")


def losses_of(method, teacher, dataset, *, size=16, networks=None):
    draws = Draws(3, 0, size)
    networks = networks or method.networks(teacher)
    return method.losses(method.phases(teacher.spec)[0], 0, networks, teacher, dataset.batch(draws), draws), networks


@STATES
@pytest.mark.parametrize("features", ["hint", "similarity", "none"])
def test_the_same_network_has_no_loss_and_no_gradient(grid, states, features):
    method = FeatureKD(states=states, features=features)
    losses, networks = losses_of(method, grid, Grid25(labelled=True))
    assert {name: value.item() for name, value in losses.items()} == dict.fromkeys(losses, 0.0)
    assert set(losses) == ({"output"} if features == "none" else {"output", "features"})
    sum(losses.values()).backward()
    assert all(p.grad is None or not p.grad.any() for p in networks["pair"].parameters())


@pytest.mark.parametrize("features", ["hint", "attention", "similarity"])
def test_the_same_unet_has_no_loss(small_unet, features):
    losses, _ = losses_of(FeatureKD(features=features), small_unet, digits(), size=4)
    assert {name: value.item() for name, value in losses.items()} == {"output": 0.0, "features": 0.0}


@STATES
def test_gradients_reach_the_smaller_network_and_its_projections_only(small_unet, states):
    losses, networks = losses_of(FeatureKD(width=0.5, states=states), small_unet, digits(), size=8)
    sum(losses.values()).backward()
    pair = networks["pair"]
    assert isinstance(pair, Pair)
    assert len(pair.hints) == 5
    # Of attention, the keys' bias moves all scores of a query alike: its gradient is rounding only, so it is left out.
    still = [name for name, p in pair.named_parameters() if p.grad is None or not p.grad.any()]
    assert [name for name in still if "to_k.bias" not in name] == []
    assert all(p.grad is None for p in small_unet.network.parameters())
    assert not any(m._forward_hooks for net in (pair, small_unet.network) for m in net.modules())
    assert {id(p) for p in networks["student"].parameters()} < {id(p) for p in pair.parameters()}


class Chain(nn.Module):
    """x -> inner * x -> outer * inner * x."""

    def __init__(self, inner, outer):
        super().__init__()
        self.inner, self.outer = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        nn.init.constant_(self.inner.weight, inner)
        nn.init.constant_(self.outer.weight, outer)

    def forward(self, x):
        return self.outer(self.inner(x))


def test_closed_form_of_the_losses():
    """Teacher 2 * 3, student 1 * 4: relative errors ((6 - 4) / 6)^2 of the output and ((2 - 1) / 2)^2 of the feature."""
    student = Smaller(network=Chain(1.0, 4.0), taps={"inner": "inner"}, kept={"inner": None})
    pair = Pair(student, hints=True)
    losses = feature_kd_loss(pair, Chain(2.0, 3.0), (torch.randn(7, 1),), "hint", 0.5)
    assert losses["output"].item() == pytest.approx((2 / 6) ** 2)
    assert losses["features"].item() == pytest.approx(0.5 * 0.25)
    assert set(feature_kd_loss(pair, Chain(2.0, 3.0), (torch.randn(7, 1),), "none", 0.5)) == {"output"}


@pytest.mark.parametrize("mode", ["embedded", "cfg"])
def test_visited_states_are_the_calls_of_the_table(mode):
    teacher = few_step("grid25-labelled-teacher") if mode == "embedded" else teacher_of("grid25-labelled-teacher")
    table = teacher.spec.plans[4]
    draws = Draws(1, 0, 20)
    inputs = visited_inputs(teacher.spec, teacher.network, table, Grid25(labelled=True).batch(draws), draws)
    calls = 40 if mode == "cfg" else 20  # 5 samples of 4 steps, both branches in one batch
    assert [len(value) for value in inputs] == [calls] * (3 if mode == "cfg" else 4)
    times = torch.tensor([row.time for row in table.rows])
    assert torch.equal(inputs[1], times.repeat_interleave(calls // 4))
    assert all(torch.equal(step, inputs[2][: calls // 4]) for step in inputs[2].split(calls // 4))
    assert not any(value.requires_grad for value in inputs)
    first = inputs[0][: calls // 4]
    assert 0.3 < first.std() < 3.0  # unit noise
    if mode == "embedded":
        assert len(set(inputs[3].tolist())) == 5  # every sample has its own guidance scale
        assert inputs[3].min() >= teacher.spec.guidance.min


def test_noised_states_have_the_times_of_the_table(grid):
    draws = Draws(1, 0, 64)
    inputs = noised_inputs(grid.spec, grid.spec.plans[4], Grid25(labelled=True).batch(draws), draws)
    assert set(inputs[1].tolist()) == {torch.tensor(row.time).item() for row in grid.spec.plans[4].rows}
    assert (inputs[2] < 5).all()  # a student whose guidance is an input is never asked without its label
    cfg = teacher_of("grid25-labelled-teacher")
    dropped = noised_inputs(cfg.spec, cfg.spec.plans[4], Grid25(labelled=True).batch(draws), draws)[2] == 5
    assert 0.25 < dropped.float().mean() < 0.75


def test_the_first_call_sees_noise_alone_at_whatever_time():
    """As it will in generation: boot is told a time near 0 for its noise, sid and tdm one in the middle."""
    spec, draws = teacher_of("grid25-teacher").spec, Draws(1, 0, 256)
    batch = Grid25().batch(draws)
    for method in (Boot(), ScoreIdentity(), TrajectoryDistributionMatching(steps=1)):
        student = method.contract(spec)
        (table,) = student.plans.values()
        x, time = noised_inputs(student, table, batch, draws)
        assert set(time.tolist()) == {torch.tensor(table.rows[0].time).item()}
        noise = table.rows[0].c_in * table.init_scale * draws.normal((2, 1, 1))
        torch.testing.assert_close(x, noise)


def test_noised_states_are_data_at_the_last_step_and_noise_at_the_first():
    teacher = few_step("grid25-teacher")
    draws = Draws(1, 0, 256)
    batch = Grid25().batch(draws)
    x, time = noised_inputs(teacher.spec, teacher.spec.plans[4], batch, draws)
    first, last = time == time.max(), time == time.min()
    assert (x[first] - draws.normal((2, 1, 1))[first]).abs().max() < 0.1
    close = (x[last] - batch.x0_BCHW[last]).square().mean()
    assert close < 0.5 < (x[first] - batch.x0_BCHW[first]).square().mean()


def test_all_plans_take_turns():
    spec = few_step("grid25-teacher").spec
    tables = {
        n: multistep_consistency(spec.process, spec.parameterization, [1.0 - i / n for i in range(n)]) for n in (1, 2)
    }
    teacher = teacher_of("grid25-teacher", plans=tables, default_steps=2)
    seen = []
    teacher.network.register_forward_pre_hook(lambda module, inputs: seen.append(sorted(set(inputs[1].tolist()))))
    method = FeatureKD(states="data")
    networks = method.networks(teacher)
    for step in range(4):
        draws = Draws(0, step, 32)
        method.losses(method.phases(teacher.spec)[0], step, networks, teacher, Grid25().batch(draws), draws)
    assert [len(times) for times in seen] == [1, 2, 1, 2]


def test_the_contract_is_the_teachers_but_for_the_network(grid):
    for teacher in (grid, teacher_of("grid25-labelled-teacher")):
        made = FeatureKD(width=0.5).contract(teacher.spec)
        same = ("sample_shape", "process", "parameterization", "condition", "guidance", "plans", "default_steps")
        assert all(getattr(made, name) == getattr(teacher.spec, name) for name in same)
        assert made.networks[0].config == {**teacher.spec.networks[0].config, "width": 64}
        assert made.name.endswith("-smaller")
    many = teacher_of("grid25-labelled-teacher").spec
    one = FeatureKD(steps=8).contract(many)
    assert (one.steps, one.default_steps, one.plans[8]) == ((8,), 8, many.plans[8])


def test_teachers_that_cannot_be_made_smaller(grid):
    with pytest.raises(UsageError, match="distilled for 4 steps, not 2") as caught:
        FeatureKD(steps=2).contract(grid.spec)
    assert "keeps its teacher's plans" in caught.value.hint
    two = dataclasses.replace(grid.spec, networks=grid.spec.networks * 2)
    with pytest.raises(UsageError, match="has 2 networks"):
        FeatureKD().contract(two)
    with pytest.raises(UsageError, match="points have one only"):
        FeatureKD(features="attention").contract(grid.spec)
    with pytest.raises(UsageError, match="feature_weight"):
        FeatureKD(feature_weight=-1.0)
    assert FeatureKD(iterations=0).phases(grid.spec) == ()


@STATES
def test_training_brings_the_smaller_network_to_its_teacher(states):
    """Half the width and half the blocks of a random teacher; the untouched tenth of its error would be luck."""
    teacher = few_step("grid25-teacher")
    method = FeatureKD(width=0.5, blocks="base", states=states, iterations=250, batch_size=64)
    trainer = Trainer(TrainConfig(method=method, identity={}), Grid25(), teacher)
    draws = Draws(9, 10_000, 256)
    batch = Grid25().batch(draws)
    inputs = visited_inputs(teacher.spec, teacher.network, teacher.spec.plans[4], batch, draws)
    target = teacher.network(*inputs)
    before = (trainer.state.networks["student"](*inputs) - target).square().mean()
    network, _ = trainer.run()
    after = (network(*inputs) - target).square().mean()
    assert after < 0.1 * before
    assert not any(name.startswith(("student", "hints")) for name in network.state_dict())
