"""Distribution matching: no gradient where the two scores agree, and generators that end with the data's mean and spread."""

import pytest
import torch
from closed_forms import PROCESS, MixtureTeacher, plain_spec
from gaussian_fit import AffineOfTime, denoiser, exact_teacher, fit, run, start_at, unit

from distill_rt.core.errors import UsageError
from distill_rt.core.table import run_table
from distill_rt.kernels import unit_noise
from distill_rt.training.data import Grid25
from distill_rt.training.distribution import GeneratorAndScore, follow, frozen, generate, score_loss
from distill_rt.training.draws import Draws
from distill_rt.training.methods import (
    DistributionMatching,
    ImprovedDistributionMatching,
    ScoreIdentity,
    VariationalScore,
)
from distill_rt.training.predictor import Conditions, Predictor, Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.rollout import renoised_states, spread_rows

ONE_STEP = [
    DistributionMatching(pairs_weight=0.0),
    VariationalScore(),
    VariationalScore(weighting="diff_instruct"),
    ScoreIdentity(alpha=1.0),
    ScoreIdentity(alpha=1.2),
]
NAMES = ["dmd", "vsd", "diff_instruct", "sid", "sid-1.2"]


@pytest.mark.parametrize("method", ONE_STEP, ids=NAMES)
def test_no_gradient_where_the_scores_agree(method):
    """The fake denoiser is the teacher's twin: the generator must not move, wherever its images are."""
    teacher, draws = Teacher(plain_spec(2), MixtureTeacher()), Draws(0, 0, 64)
    images = (2.0 * draws.normal((2, 1, 1))).requires_grad_(True)
    method.matching(teacher, MixtureTeacher(), images, Conditions(), draws).backward()
    assert torch.equal(images.grad, torch.zeros_like(images))

    class Other(MixtureTeacher):
        def forward(self, x, time_B):
            return super().forward(x, time_B) + 0.1

    images.grad = None
    method.matching(teacher, Other(), images, Conditions(), draws).backward()
    assert images.grad.abs().min() > 0


@pytest.mark.parametrize("method", ONE_STEP, ids=NAMES)
def test_a_generator_ends_with_the_mean_and_the_spread_of_the_data(method):
    teacher = Teacher(plain_spec(3), exact_teacher())
    student, score = AffineOfTime(3, num_knots=2), start_at(AffineOfTime(3, num_knots=17), denoiser)
    alpha, sigma = (float(f(method.start)) for f in (teacher.process.alpha, teacher.process.sigma))
    with (
        torch.no_grad()
    ):  # images near the origin with a third of the spread: x0 = alpha x - sigma F of x = sigma z is 0.3 z
        student.weight.fill_((alpha - 0.3 / sigma) / sigma)
    both = GeneratorAndScore(student, score)
    networks = {"student": student, "both": both}
    z, table = unit(4096), method.contract(teacher.spec).plans[1]
    fit(method, method.phases(teacher.spec)[0], networks, teacher, iterations=1200, learning_rate=1e-2, trained="both")
    made = run(student, table, z).flatten(1)
    torch.testing.assert_close(made.mean(0), exact_teacher().mean.flatten(), atol=0.07, rtol=0.0)
    torch.testing.assert_close(made.std(0), exact_teacher().std.flatten(), atol=0.07, rtol=0.0)


@pytest.mark.parametrize("method", [*ONE_STEP, VariationalScore(start=0.3)], ids=[*NAMES, "0.3"])
def test_training_makes_the_images_that_the_plan_makes(method):
    """From the same noise, at the time and the scale of the contract's only row."""
    spec, z = plain_spec(2), Draws(0, 0, 64).normal((2, 1, 1))
    table = method.contract(spec).plans[1]
    (row,) = table.rows
    assert float(spec.process.t_from_model_time(row.time)) == pytest.approx(method.start)
    made = generate(spec, MixtureTeacher(), z, Conditions(), method.start)
    torch.testing.assert_close(made, run(MixtureTeacher(), table, z).float(), atol=1e-5, rtol=0.0)


def test_below_time_one_the_first_images_are_not_all_the_mean():
    """What `start` is for, with an exact teacher's weights."""
    spec, z = plain_spec(2), Draws(0, 0, 512).normal((2, 1, 1))
    spread = [generate(spec, MixtureTeacher(), z, Conditions(), t).std() for t in (1.0, 0.75, 0.6)]
    data = Grid25().batch(Draws(0, 0, 512)).x0_BCHW.std()
    assert spread[0] < 0.01 * data
    assert spread[0] < 0.1 * spread[1] < 0.1 * spread[2] < 0.2 * data


def test_the_losses_touch_disjoint_weights():
    teacher = Teacher(plain_spec(2), MixtureTeacher())
    draws = Draws(0, 0, 16)
    batch = Grid25().batch(draws)
    for method in (*ONE_STEP, ImprovedDistributionMatching(score_steps=1)):
        num_times = 2 if isinstance(method, ImprovedDistributionMatching) else 1
        both = GeneratorAndScore(AffineOfTime(2), AffineOfTime(2, num_times=num_times))
        torch.nn.init.normal_(both.student.weight)
        losses = method.losses(
            method.phases(teacher.spec)[0], 0, {"student": both.student, "both": both}, teacher, batch, draws
        )
        for name, owner, other in (("score", both.score, both.student), ("matching", both.student, both.score)):
            both.zero_grad()
            losses[name].backward(retain_graph=True)
            assert owner.weight.grad.abs().sum() > 0, name
            assert other.weight.grad is None or not other.weight.grad.any(), name


class Listener(torch.nn.Module):
    """Keeps the times that it is told, as process times, and answers nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[list[list[float]]] = []
        self.answer = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, *times):
        self.heard.append([[round(t, 3) for t in PROCESS.t_from_model_time(time).tolist()] for time in times])
        return self.answer * x


@pytest.mark.parametrize(("steps", "rows"), [(4, [0.5, 0.375, 0.25, 0.125]), (1, None)])
def test_dmd2_tells_the_score_which_step_made_an_image(steps, rows):
    teacher, method = Teacher(plain_spec(2), MixtureTeacher()), ImprovedDistributionMatching(steps=steps, start=0.5)
    both, draws = GeneratorAndScore(Listener(), Listener()), Draws(0, 0, 8)
    networks = {"student": both.student, "both": both}
    losses = method.losses(method.phases(teacher.spec)[0], 0, networks, teacher, Grid25().batch(draws), draws)
    assert set(losses) == {"score", "matching"}
    *rolled, (asked,) = both.student.heard
    assert [len(times[0]) for times in rolled] == [6, 4, 2][: steps - 1], "an image leaves at its own step"
    assert asked == (rows * 2 if rows else [0.5] * 8)
    assert [heard[1:] for heard in both.score.heard] == ([[asked]] * 2 if rows else [[]] * 2)


def test_a_batch_smaller_than_the_steps_moves_them_in_turn():
    teacher = Teacher(plain_spec(2), MixtureTeacher())
    method = ImprovedDistributionMatching(steps=4, start=0.5, score_steps=4)
    moved = set()
    for step in range(0, 16, 4):
        both, draws = GeneratorAndScore(Listener(), Listener()), Draws(0, step, 1)
        networks = {"student": both.student, "both": both}
        losses = method.losses(method.phases(teacher.spec)[0], step, networks, teacher, Grid25().batch(draws), draws)
        assert "matching" in losses
        moved.add(both.student.heard[-1][0][0])
    assert moved == {0.5, 0.375, 0.25, 0.125}


def test_a_shared_score_sees_one_step_a_batch():
    """Of prompts always: their networks take no second time."""
    assert not ImprovedDistributionMatching().tells_rows(RECIPES["shapes-text-teacher"]().spec)
    teacher = Teacher(plain_spec(2), MixtureTeacher())
    method = ImprovedDistributionMatching(steps=4, start=0.5, score="shared", score_steps=2)
    asked = []
    for step in range(8):
        both, draws = GeneratorAndScore(Listener(), Listener()), Draws(0, step, 2)
        networks = {"student": both.student, "both": both}
        method.losses(method.phases(teacher.spec)[0], step, networks, teacher, Grid25().batch(draws), draws)
        asked.append(both.student.heard[-1][0])
        assert all(len(heard) == 1 for heard in both.score.heard)
    assert asked == [[t] * 2 for t in (0.5, 0.5, 0.375, 0.375, 0.25, 0.25, 0.125, 0.125)]


def test_the_generator_rests_while_the_score_learns():
    teacher, method = Teacher(plain_spec(2), MixtureTeacher()), VariationalScore(score_steps=3)
    both = GeneratorAndScore(AffineOfTime(2), AffineOfTime(2))
    for step in range(6):
        draws = Draws(0, step, 8)
        losses = method.losses(
            method.phases(teacher.spec)[0], step, {"student": both.student, "both": both}, teacher,
            Grid25().batch(draws), draws,
        )  # fmt: skip
        assert set(losses) == ({"score", "matching"} if step % 3 == 0 else {"score"})


def test_score_loss_is_least_for_the_generators_own_denoiser():
    """On images of the Gaussian itself, its exact denoiser beats a shifted one."""
    draws = Draws(0, 0, 4096)
    images = exact_teacher().mean.float() + exact_teacher().std.float() * draws.normal((3, 1, 1))
    own = score_loss(plain_spec(3), exact_teacher(), images, Conditions(), draws)
    other = score_loss(plain_spec(3), exact_teacher(), images + 0.5, Conditions(), draws)
    assert own < 0.9 * other


def test_following_a_gradient():
    images, gradient = torch.randn(4, 2, 1, 1, requires_grad=True), torch.randn(4, 2, 1, 1)
    follow(images, gradient).backward()
    torch.testing.assert_close(images.grad, gradient / 8)


def test_frozen_lets_gradients_through():
    layer, x = torch.nn.Linear(2, 2), torch.randn(3, 2, requires_grad=True)
    with frozen(layer):
        y = layer(x).sum()
    y.backward()
    assert layer.weight.grad is None
    assert x.grad is not None
    assert layer.weight.requires_grad


def test_a_rolled_state_is_what_the_sampler_visits():
    """DMD2 trains on the states of the exported table, noise and all."""
    spec = plain_spec(2)
    teacher = Teacher(spec, MixtureTeacher())
    table = ImprovedDistributionMatching(steps=4, start=1.0).contract(spec).plans[4]
    seeds, visited = Draws(0, 0, 5).seeds, []

    def network(net_id, x, time, second_time):
        visited.append(x)
        return MixtureTeacher()(torch.from_numpy(x), torch.full((5,), time)).numpy()

    run_table(table, unit_noise(seeds, (2, 1, 1)), network, lambda s: unit_noise(seeds, (2, 1, 1), s), dtype="float32")
    times = [1.0, 0.75, 0.5, 0.25]
    predictor = Predictor.of(spec, teacher.network)
    for row_B in (torch.tensor([0, 1, 2, 3, 2]), torch.full((5,), 3), torch.zeros(5, dtype=torch.int64)):
        x = renoised_states(predictor, (2, 1, 1), times, row_B, Conditions(), Draws(0, 0, 5))
        wanted = torch.stack([torch.from_numpy(visited[int(row)][i]) for i, row in enumerate(row_B)])
        torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-5)


def test_rows_are_spread_over_every_batch_and_in_turn():
    for step in range(3):
        assert torch.bincount(spread_rows(4, step, Draws(0, step, 8)), minlength=4).tolist() == [2, 2, 2, 2]
    assert [int(spread_rows(4, step, Draws(0, step, 1))[0]) for step in range(4)] == [0, 1, 2, 3]
    halves = [spread_rows(4, 5, Draws(0, 5, 3, first_sample=first)) for first in (0, 3)]
    assert torch.equal(torch.cat(halves), spread_rows(4, 5, Draws(0, 5, 6)))


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        (DistributionMatching, {"steps": 4}),
        (DistributionMatching, {"pairs_weight": -1.0}),
        (DistributionMatching, {"num_pairs": 0}),
        (VariationalScore, {"score_steps": 0}),
        (ScoreIdentity, {"alpha": 3.0}),
        (ScoreIdentity, {"steps": 2}),
        (ImprovedDistributionMatching, {"steps": 0}),
        (ImprovedDistributionMatching, {"pairs_weight": 1.0}),
        (ImprovedDistributionMatching, {"start": 2.0}),
        (DistributionMatching, {"start": 0.0}),
        (VariationalScore, {"start": 1.1}),
        (ScoreIdentity, {"start": float("nan")}),
    ],
)
def test_settings_out_of_range(method, wrong):
    with pytest.raises(UsageError):
        method(**wrong)
