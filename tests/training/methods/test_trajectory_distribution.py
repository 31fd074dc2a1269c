"""Trajectory distribution matching: transitions, rest where scores agree, laws of all states."""

import pytest
import torch
from closed_forms import PROCESS, MixtureTeacher, plain_spec
from gaussian_fit import AffineOfTime, denoiser, exact_teacher, fit, run, start_at, unit

from distill_rt.core.errors import UsageError
from distill_rt.core.process import EDM, RectifiedFlow
from distill_rt.core.samplers.ddim import added_std
from distill_rt.core.samplers.grid import scalar_level
from distill_rt.core.table import StepTable, run_table
from distill_rt.kernels import unit_noise
from distill_rt.training.data import Grid25
from distill_rt.training.distribution import GeneratorAndScore
from distill_rt.training.draws import Draws
from distill_rt.training.methods import TrajectoryDistributionMatching
from distill_rt.training.methods.tdm import Landing
from distill_rt.training.predictor import Conditions, Predictor, Teacher
from distill_rt.training.rollout import ddim_states
from distill_rt.training.transitions import transition

EVERY = [
    TrajectoryDistributionMatching(levels=levels, weighting=weighting)
    for levels in ("interval", "above")
    for weighting in ("dmd", "vsd")
]


class Twin(torch.nn.Module):
    """A teacher's answers for whoever names a second time too, plus a constant."""

    def __init__(self, network, shift=0.0):
        super().__init__()
        self.network, self.shift = network, shift

    def forward(self, x, time_B, second_B):
        return self.network(x, time_B) + self.shift


def landing_of(x_s: torch.Tensor, s_B: torch.Tensor) -> Landing:
    return Landing(x_s=x_s, x0=x_s.detach().clone().requires_grad_(), s_B=s_B, highest_B=torch.ones_like(s_B))


@pytest.mark.parametrize("process", [PROCESS, RectifiedFlow(), EDM()], ids=lambda p: p.kind)
def test_going_up_keeps_the_law_of_the_process(process):
    """And adds as much noise as the samplers' own form says."""
    x0, t_B, s_B = torch.randn(6, 2, 1, 1), torch.full((6,), 0.75), torch.full((6,), 0.25)
    way, sigma = transition(process, s_B, t_B, x0), {t: float(process.sigma(t)) for t in (0.25, 0.75)}
    mean = way.up(process.add_noise(x0, torch.zeros(6, 2, 1, 1), s_B), torch.zeros(6, 2, 1, 1))
    torch.testing.assert_close(mean, process.add_noise(x0, torch.zeros(6, 2, 1, 1), t_B))
    variance = (way.k * sigma[0.25]) ** 2 + way.a**2
    torch.testing.assert_close(variance, torch.full_like(variance, sigma[0.75] ** 2))
    expected = added_std(scalar_level(process, 0.75), scalar_level(process, 0.25))
    torch.testing.assert_close(way.a, torch.full_like(way.a, expected))


@pytest.mark.parametrize("start", [1.0, 0.75])
def test_the_states_are_those_of_the_exported_sampler(start):
    spec = plain_spec(2)
    table = TrajectoryDistributionMatching(steps=4, start=start).contract(spec).plans[4]
    draws, visited = Draws(0, 0, 5), []

    def network(net_id, x, time, second_time):
        visited.append(x)
        return MixtureTeacher()(torch.from_numpy(x), torch.full((5,), time)).numpy()

    last = run_table(table, unit_noise(draws.seeds, (2, 1, 1)), network, None, dtype="float32")
    times = [start * t for t in (1.0, 0.75, 0.5, 0.25, 0.0)]
    states = ddim_states(Predictor.of(spec, MixtureTeacher()), (2, 1, 1), times, Conditions(), draws)
    for state, expected in zip(states, [*visited, last], strict=True):
        torch.testing.assert_close(state, torch.from_numpy(expected), rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("method", EVERY, ids=lambda m: f"{m.levels}-{m.weighting}")
def test_no_gradient_where_the_scores_agree(method):
    teacher, draws = Teacher(plain_spec(2), MixtureTeacher()), Draws(0, 0, 64)
    landing = landing_of(2.0 * draws.normal((2, 1, 1)), 0.25 * draws.integers(0, 4, 0).float())
    method.matching(teacher, Twin(MixtureTeacher()), landing, Conditions(), draws).backward()
    assert torch.equal(landing.x0.grad, torch.zeros_like(landing.x0))
    landing.x0.grad = None
    method.matching(teacher, Twin(MixtureTeacher(), 0.1), landing, Conditions(), draws).backward()
    assert landing.x0.grad.abs().min() > 0


@pytest.mark.parametrize("s", [0.0, 0.25, 0.75])
def test_the_score_loss_is_stationary_at_the_exact_score(s):
    """States at s with the teacher's own law: no constant added to the teacher's answers helps."""
    num = 400_000
    exact, draws, spec = exact_teacher(), Draws(0, 0, num), plain_spec(3)
    s_B = torch.full((num,), s)
    x0 = exact.mean.float() + exact.std.float() * draws.normal((3, 1, 1))
    landing = landing_of(
        PROCESS.add_noise(x0, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)), s_B), s_B
    )
    at, above, below = (
        TrajectoryDistributionMatching().score_loss(spec, Twin(exact, shift), landing, Conditions(), draws)
        for shift in (0.0, 0.2, -0.2)
    )
    curvature = above + below - 2 * at
    assert curvature > 0
    assert abs(above - below) < 0.1 * curvature


@pytest.mark.parametrize("start", [1.0, 0.75])
@pytest.mark.parametrize("levels", ["interval", "above"])
def test_every_state_has_the_law_of_the_teachers(levels, start):
    method = TrajectoryDistributionMatching(steps=2, start=start, levels=levels, weighting="vsd", score_steps=2)
    teacher = Teacher(plain_spec(3), exact_teacher())
    student = start_at(AffineOfTime(3, num_knots=3), denoiser)
    score = start_at(AffineOfTime(3, num_times=2, num_knots=17), denoiser)
    networks = {"student": student, "both": GeneratorAndScore(student, score)}
    table, z = method.contract(teacher.spec).plans[2], unit(4096)
    z = (z - z.mean(0)) / z.std(0)  # whatever is left over then is the student's
    mean, std = exact_teacher().mean.flatten(), exact_teacher().std.flatten()
    assert (run(student, table, z).flatten(1).std(0) - std).abs().max() > 0.15, "two steps of DDIM lose spread"
    fit(method, method.phases(teacher.spec)[0], networks, teacher, iterations=1600, learning_rate=1e-2, trained="both")
    halfway = run(student, StepTable(init_scale=table.init_scale, rows=table.rows[:1]), z).flatten(1)
    alpha, sigma = PROCESS.alpha(start / 2), PROCESS.sigma(start / 2)
    for made, wanted_mean, wanted_std in (
        (run(student, table, z).flatten(1), mean, std),
        (halfway, alpha * mean, (alpha**2 * std**2 + sigma**2).sqrt()),
    ):
        torch.testing.assert_close(made.mean(0), wanted_mean, atol=0.1, rtol=0.0)
        torch.testing.assert_close(made.std(0), wanted_std, atol=0.1, rtol=0.0)


def test_the_losses_touch_disjoint_weights_and_the_student_rests_between():
    teacher, method = Teacher(plain_spec(2), MixtureTeacher()), TrajectoryDistributionMatching(score_steps=2)
    both = GeneratorAndScore(AffineOfTime(2), AffineOfTime(2, num_times=2, num_knots=5))
    torch.nn.init.normal_(both.student.weight)
    networks, phase = {"student": both.student, "both": both}, method.phases(teacher.spec)[0]
    draws = Draws(0, 0, 16)
    losses = method.losses(phase, 0, networks, teacher, Grid25().batch(draws), draws)
    for name, owner, other in (("score", both.score, both.student), ("matching", both.student, both.score)):
        both.zero_grad()
        losses[name].backward(retain_graph=True)
        assert owner.weight.grad.abs().sum() > 0, name
        assert other.weight.grad is None or not other.weight.grad.any(), name
    assert set(method.losses(phase, 1, networks, teacher, Grid25().batch(draws), draws)) == {"score"}


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"score_steps": 0}, {"start": 0.0}, {"start": 1.5}])
def test_settings_out_of_range(wrong):
    with pytest.raises(UsageError):
        TrajectoryDistributionMatching(**wrong)
