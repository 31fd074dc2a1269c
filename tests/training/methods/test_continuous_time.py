"""Methods that differentiate along a trajectory: derivatives are right, exact maps stand still, Gaussians are reached."""

import pytest
import torch
from closed_forms import PROCESS, MixtureTeacher, V, plain_spec
from gaussian_fit import AffineOfTime, GaussianData, denoiser, exact_teacher, fit, relative, run, start_at, unit
from torch import nn

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import inverse_ddim_target
from distill_rt.core.process import EDM, RectifiedFlow, VPCosine, VPLinear
from distill_rt.models import build_network
from distill_rt.training.data import Grid25
from distill_rt.training.distribution import GeneratorAndScore
from distill_rt.training.draws import Draws
from distill_rt.training.flow_map import flow_speed, flow_time
from distill_rt.training.methods import (
    ImprovedDistributionMatching,
    MeanFlow,
    RegularizedConsistency,
    SimplifiedConsistency,
)
from distill_rt.training.methods.scm import angle_of, angle_speed
from distill_rt.training.predictor import Conditions, Predictor, Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.tangents import derivative, earlier, slope


@pytest.fixture
def teacher():
    return Teacher(plain_spec(3), exact_teacher())


class PolynomialOfTime(nn.Module):
    """An affine map whose coefficients are Chebyshev polynomials of one time or two: derivatives need a smooth network."""

    def __init__(self, dim, *, num_times=1, degree=4):
        super().__init__()
        self.degree = degree
        size = (degree + 1) ** num_times
        self.weight = nn.Parameter(torch.zeros(size, dim))
        self.bias = nn.Parameter(torch.zeros(size, dim))

    def forward(self, x, *times):
        basis = torch.ones(len(x), 1)
        for time in times:
            u = 2.0 * PROCESS.t_from_model_time(time) - 1.0
            terms = [torch.ones_like(u), u]
            while len(terms) <= self.degree:
                terms.append(2.0 * u * terms[-1] - terms[-2])
            basis = (basis[:, :, None] * torch.stack(terms, dim=1)[:, None]).flatten(1)
        return (basis @ self.weight)[:, :, None, None] * x + (basis @ self.bias)[:, :, None, None]


class Smooth(nn.Module):
    """A random network that is smooth in its times, at float64."""

    def __init__(self, num_times=1):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn(3 + num_times, 16, generator=generator, dtype=torch.float64))
        self.second = nn.Parameter(torch.randn(16, 3, generator=generator, dtype=torch.float64))

    def forward(self, x, *times):
        t = [PROCESS.t_from_model_time(time)[:, None] for time in times]
        return (torch.tanh(torch.cat([x.flatten(1), *t], dim=1) @ self.first) @ self.second).reshape(x.shape)


def points(num=64, *, low=0.1, high=0.9):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(num, 3, 1, 1, generator=generator, dtype=torch.float64)
    return x, low + (high - low) * torch.rand(num, generator=generator, dtype=torch.float64)


def test_the_derivative_is_the_limit_of_central_differences():
    predictor = Predictor.of(plain_spec(3), Smooth())
    x, t = points()
    dx, h = slope(PROCESS, x, denoised(x, t), t), 1e-4

    def function(x, t):
        return predictor.x0(x, t, Conditions())

    central = (function(x + h * dx, t + h) - function(x - h * dx, t - h)) / (2 * h)
    assert relative(derivative(function, x, t, dx), central) < 1e-6
    without_t = (function(x + h * dx, t) - function(x - h * dx, t)) / (2 * h)
    assert relative(without_t, central) > 0.05, "both parts matter"
    assert not derivative(function, x, t, dx).requires_grad
    assert function(x, t).requires_grad


def test_the_derivative_passes_through_attention():
    """Fused attention has no forward mode; times are low, where diffusers' float32 features can be differenced."""
    spec = RECIPES["digits-teacher"]().spec
    torch.manual_seed(0)
    network = build_network(spec.networks[0]).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    generator = torch.Generator().manual_seed(2)
    x, dx = (torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    t, h, label_B = torch.tensor([0.001, 0.002, 0.004, 0.008], dtype=torch.float64), 3e-5, torch.arange(4)

    def function(x, t):
        return Predictor.of(spec, network).x0(x, t, Conditions(label_B=label_B))

    central = (function(x + h * dx, t + h) - function(x - h * dx, t - h)) / (2 * h)
    assert relative(derivative(function, x, t, dx), central) < 1e-3


@pytest.mark.parametrize("process", [VPCosine(), VPLinear(), RectifiedFlow(), EDM()], ids=lambda p: p.kind)
def test_speeds_of_the_two_clocks(process):
    t, h = torch.tensor([0.1003, 0.3507, 0.6008, 0.9001], dtype=torch.float64), 1e-5
    central = (flow_time(process, t + h) - flow_time(process, t - h)) / (2 * h)
    torch.testing.assert_close(flow_speed(process, t), central, rtol=1e-6, atol=1e-9)


def denoised(x, t):
    level = PROCESS.at(t).like(x)
    exact = exact_teacher()
    gain = level.alpha * exact.std**2 / (level.alpha**2 * exact.std**2 + level.sigma**2)
    return exact.mean + gain * (x - level.alpha * exact.mean)


def flowed(x, t, s):
    """Where the exact flow takes x from t to s, times of shape (B,)."""
    exact, now, later = exact_teacher(), PROCESS.at(t).like(x), PROCESS.at(s).like(x)
    spread, left = (torch.sqrt(level.alpha**2 * exact.std**2 + level.sigma**2) for level in (now, later))
    return later.alpha * exact.mean + left / spread * (x - now.alpha * exact.mean)


class ExactFlow(nn.Module):
    """The student that every method here must reach: of one time, or of two."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x, time, second=None):
        t = PROCESS.t_from_model_time(time.double())
        s = torch.zeros_like(t) if second is None else PROCESS.t_from_model_time(second.double())
        landed = flowed(x.double(), t, s)
        x0 = inverse_ddim_target(x.double(), landed, PROCESS.at(t), PROCESS.at(s))
        x0 = torch.where((t - s).abs()[:, None, None, None] < 1e-9, denoised(x.double(), t), x0)
        return V.target(x.double(), x0, PROCESS.at(t)).to(x.dtype) + 0.0 * self.unused


def test_an_earlier_point_lies_on_the_trajectory(teacher):
    x, t = points()
    m = t - 0.005
    torch.testing.assert_close(earlier(teacher, x, t, m, Conditions(), None), flowed(x, t, m), rtol=0, atol=2e-5)
    x0, eps = points()[0], torch.randn(64, 3, 1, 1, dtype=torch.float64)
    noised = earlier(teacher, PROCESS.add_noise(x0, eps, t), t, m, Conditions(), x0)
    torch.testing.assert_close(noised, PROCESS.add_noise(x0, eps, m))


@pytest.mark.parametrize(("interval", "bound"), [(0.0, 1e-7), (0.02, 1e-5)])
def test_mean_flow_is_at_rest_at_the_exact_flow(teacher, interval, bound):
    """Up to rounding for the derivative, to the error of a teacher step for an interval; other students are not at rest."""
    method = MeanFlow(interval=interval, instant=0.0, power=0.0)
    draws = Draws(0, 0, 256)
    batch = GaussianData().batch(draws)
    (phase,) = method.phases(teacher.spec)
    at_rest = method.losses(phase, 0, {"student": ExactFlow()}, teacher, batch, draws)["meanflow"]
    moving = method.losses(phase, 0, {"student": AffineOfTime(3, num_times=2)}, teacher, batch, draws)["meanflow"]
    assert at_rest < bound
    assert moving > 0.1


@pytest.mark.parametrize(
    ("method", "bound"),
    [
        (MeanFlow(steps=4), 0.05),
        (MeanFlow(steps=4, interval=0.0, power=1.0), 0.07),
        (MeanFlow(steps=4, source="data"), 0.15),
    ],
    ids=["interval", "derivative", "data"],
)
def test_mean_flow_reaches_the_exact_flow_in_every_plan(teacher, method, bound):
    knots = start_at(AffineOfTime(3, num_times=2, num_knots=17), denoiser)
    student = knots if method.interval else PolynomialOfTime(3, num_times=2)
    plans = method.contract(teacher.spec).plans
    z, flow = unit(), exact_teacher().flow(unit())
    assert sorted(plans) == [1, 2, 4]
    assert relative(run(student, plans[1], z), flow) > 0.8
    fit(method, method.phases(teacher.spec)[0], {"student": student}, teacher, iterations=800, learning_rate=2e-2)
    for table in plans.values():
        assert not table.is_stochastic
        assert relative(run(student, table, z), flow) < bound


@pytest.mark.parametrize(("interval", "bound"), [(0.0, 1e-4), (0.02, 0.02)])
def test_the_tangent_is_zero_at_the_exact_consistency_function(teacher, interval, bound):
    """Up to the noise that the process ends with for the derivative, to the error of a teacher step for an interval."""
    method = SimplifiedConsistency(interval=interval)
    x, t = points()
    g = {}
    for network in (ExactFlow(), Smooth()):
        student = Predictor.of(teacher.spec, network)
        with torch.no_grad():
            g[network] = method.tangent(student, teacher, (student.x0(x, t, Conditions()), x, t), Conditions(), None)
    at_rest, moving = (value.square().mean().sqrt() for value in g.values())
    assert at_rest < bound
    assert moving > 0.5


@pytest.mark.parametrize("risen", [0.0, 0.4, 1.0])
def test_the_tangent_is_the_papers(teacher, risen):
    """Their algorithm 1 in F and TrigFlow's angle, dF/dt by central differences."""
    network = Smooth()
    student = Predictor.of(teacher.spec, network)
    x, t = points()
    speed, h = float(angle_speed(PROCESS, 0.5)), 1e-4
    angle = angle_of(PROCESS, t)[:, None, None, None]

    def F(x, angle_change):
        return network(x, PROCESS.model_time(t + angle_change / speed))

    with torch.no_grad():
        dx = teacher.network(x, PROCESS.model_time(t))  # v of a variance preserving process is dx over d angle
        dF = (F(x + h * dx, h) - F(x - h * dx, -h)) / (2 * h)
        paper = -(angle.cos() ** 2) * (F(x, 0.0) - dx) - risen * angle.cos() * angle.sin() * (x + dF)
        f = student.x0(x, t, Conditions())
        method = SimplifiedConsistency(interval=0.0)
        g = method.tangent(student, teacher, (f, x, t), Conditions(), None, risen)
    assert relative(g, paper) < 1e-3


@pytest.mark.parametrize(
    ("method", "bound"),
    [
        (SimplifiedConsistency(steps=1), 0.05),
        (SimplifiedConsistency(steps=1, interval=0.0), 0.2),
        (SimplifiedConsistency(steps=1, source="data"), 0.15),
    ],
    ids=["interval", "derivative", "data"],
)
def test_scm_reaches_the_exact_flow(teacher, method, bound):
    student = start_at(AffineOfTime(3), denoiser) if method.interval else PolynomialOfTime(3)
    (table,) = method.contract(teacher.spec).plans.values()
    z, flow = unit(), exact_teacher().flow(unit())
    assert relative(run(student, table, z), flow) > 0.8
    fit(method, method.phases(teacher.spec)[0], {"student": student}, teacher, iterations=800, learning_rate=2e-2)
    assert relative(run(student, table, z), flow) < bound


def rcm_losses(step, score, **settings):
    teacher = Teacher(plain_spec(2), MixtureTeacher())
    method = RegularizedConsistency(steps=2, **settings)
    student = AffineOfTime(2)
    with torch.no_grad():
        student.weight.fill_(-0.3)
    both = GeneratorAndScore(student, score)
    draws = Draws(0, step, 64)
    (phase,) = method.phases(teacher.spec)
    networks = {"student": student, "both": both}
    return method.losses(phase, step, networks, teacher, Grid25().batch(draws), draws), student, score


def test_rcm_is_scm_and_weighted_matching():
    """Losses of its two parts by themselves, on the same draws; the matching rests while the score learns."""
    for step in range(4):
        losses, student, score = rcm_losses(step, AffineOfTime(2), matching_weight=0.25, score_steps=2)
        teacher, draws = Teacher(plain_spec(2), MixtureTeacher()), Draws(0, step, 64)
        networks, batch = {"student": student, "both": GeneratorAndScore(student, score)}, Grid25().batch(draws)
        expected = {}
        matcher = ImprovedDistributionMatching(steps=2, start=1.0, level_power=1.0, score="shared", score_steps=2)
        for method in (SimplifiedConsistency(), matcher):
            expected |= method.losses(method.phases(teacher.spec)[0], step, networks, teacher, batch, draws)
        assert set(losses) == ({"scm", "score", "matching"} if step % 2 == 0 else {"scm", "score"})
        for name, loss in losses.items():
            torch.testing.assert_close(loss, expected[name] * (0.25 if name == "matching" else 1.0))


def test_the_scores_loss_is_the_scores_and_the_others_are_the_students():
    losses, student, score = rcm_losses(0, AffineOfTime(2))
    for name, (owner, other) in {
        "scm": (student, score),
        "matching": (student, score),
        "score": (score, student),
    }.items():
        student.weight.grad = score.weight.grad = None
        losses[name].backward(retain_graph=True)
        assert owner.weight.grad.abs().sum() > 0, name
        assert other.weight.grad is None or not other.weight.grad.any(), name


def test_matching_is_at_rest_where_the_scores_agree():
    """The score network is the teacher's twin: only scm is left to move the student."""
    losses, student, _ = rcm_losses(0, MixtureTeacher())
    losses["matching"].backward()
    assert not student.weight.grad.any()


def test_rcm_reaches_the_exact_flow(teacher):
    """From images with a third of the spread: matching alone would be content with any map to the data."""
    method = RegularizedConsistency(steps=1)
    student, score = AffineOfTime(3), start_at(AffineOfTime(3), denoiser)
    with torch.no_grad():
        student.weight.fill_(-0.3)
    networks = {"student": student, "both": GeneratorAndScore(student, score)}
    (table,) = method.contract(teacher.spec).plans.values()
    z, flow = unit(), exact_teacher().flow(unit())
    assert relative(run(student, table, z), flow) > 0.4
    fit(method, method.phases(teacher.spec)[0], networks, teacher, iterations=1000, learning_rate=2e-2, trained="both")
    assert relative(run(student, table, z), flow) < 0.05


def test_times_of_mean_flow():
    t, s = MeanFlow(instant=0.25).times(Draws(0, 0, 4096))
    assert ((s <= t) & (s >= 0.0) & (t <= 1.0)).all()
    assert float((s == t).float().mean()) == pytest.approx(0.25, abs=0.03)


def test_who_learns_from_data_learns_no_guidance():
    spec = RECIPES["grid25-labelled-teacher"]().spec
    for method in (MeanFlow, SimplifiedConsistency):
        assert method().contract(spec).guidance.mode == "embedded"
        assert method(source="data").contract(spec).guidance.mode == "none"


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        (MeanFlow, {"steps": 0}),
        (MeanFlow, {"interval": -0.1}),
        (MeanFlow, {"interval": 0.0001}),
        (MeanFlow, {"interval": 0.6}),
        (MeanFlow, {"instant": 1.0}),
        (MeanFlow, {"power": 1.5}),
        (MeanFlow, {"floor": 0.0}),
        (SimplifiedConsistency, {"steps": 0}),
        (SimplifiedConsistency, {"interval": 0.7}),
        (SimplifiedConsistency, {"warmup": 1.5}),
        (SimplifiedConsistency, {"floor": 0.0}),
        (RegularizedConsistency, {"steps": 0}),
        (RegularizedConsistency, {"interval": 0.7}),
        (RegularizedConsistency, {"matching_weight": 0.0}),
        (RegularizedConsistency, {"score_steps": 0}),
    ],
)
def test_settings_out_of_range(method, wrong):
    with pytest.raises(UsageError):
        method(**wrong)
