"""Adversarial methods: losses at equilibrium, disjoint weights, and generators that end with the data's mean and spread."""

import dataclasses
import math

import pytest
import torch
from closed_forms import PROCESS, GaussianTeacher, plain_spec
from gaussian_fit import MEAN, STD, AffineOfTime, exact_teacher, fit, run, unit

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import NetworkSpec
from distill_rt.models import build_network
from distill_rt.training.adversarial import (
    FeatureJudge,
    GeneratorAndDiscriminator,
    discriminator_loss,
    generator_loss,
    steepness,
    teacher_features,
)
from distill_rt.training.data import Batch, Grid25, digits
from distill_rt.training.draws import Draws
from distill_rt.training.methods import LatentAdversarial
from distill_rt.training.methods.ladd import SideBySide
from distill_rt.training.pairs import PairCache
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.recipes import RECIPES

LOSSES = ["softplus", "hinge", "relativistic"]


def taught(recipe: str) -> Teacher:
    spec = RECIPES[recipe]().spec
    torch.manual_seed(0)
    network = build_network(spec.networks[0])
    for name, parameter in network.named_parameters():  # zero-initialised layers would hide what the features see
        if not name.startswith("guidance"):
            torch.nn.init.normal_(parameter, std=0.1)
    return Teacher(spec, network)


@pytest.fixture(scope="module")
def points():
    return taught("grid25-teacher")


@pytest.fixture(scope="module")
def images():
    return taught("digits-teacher")


def awake(judge: torch.nn.Module) -> torch.nn.Module:
    """Heads start at logit 0; these do not."""
    for name, parameter in judge.named_parameters():
        if name.endswith("out.weight"):
            torch.nn.init.normal_(parameter)
    return judge


# -- losses ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", LOSSES)
def test_a_judge_that_cannot_tell_is_at_rest(kind):
    """Equal logits of both kinds: no direction is better (for the losses of sums, at logit 0, their equilibrium)."""
    logits = torch.randn(64, 3) if kind == "relativistic" else torch.zeros(64, 3)
    shared = torch.zeros((), requires_grad=True)
    discriminator_loss(kind, logits + shared, logits + shared).backward()
    assert shared.grad.abs() < 1e-6
    real, fake = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    discriminator_loss(kind, real, fake).backward()
    torch.testing.assert_close(real.grad, -fake.grad)
    assert (real.grad < 0).all()
    generator_loss(kind, real, fake.detach().requires_grad_())


@pytest.mark.parametrize("kind", LOSSES)
def test_generators_climb_and_do_not_saturate(kind):
    real = torch.zeros(2, 1, requires_grad=True)
    sure, unsure = torch.tensor([[-20.0]], requires_grad=True), torch.tensor([[0.0]], requires_grad=True)
    for fake in (sure, unsure):
        generator_loss(kind, real[:1], fake).backward()
    assert sure.grad <= unsure.grad < 0
    assert real.grad is None, "the generator does not move real images' logits"


def test_losses_at_zero():
    zero = torch.zeros(4, 2)
    assert discriminator_loss("softplus", zero, zero).item() == pytest.approx(2 * math.log(2))
    assert discriminator_loss("hinge", zero, zero).item() == pytest.approx(2.0)
    assert discriminator_loss("relativistic", zero, zero).item() == pytest.approx(math.log(2))


def test_steepness_of_a_plane_is_its_squared_gradient():
    weight, x, z = torch.tensor([1.0, -2.0, 0.5]), torch.randn(200_000, 3), torch.randn(200_000, 3)
    assert steepness(x @ weight, (x + 0.1 * z) @ weight, 0.1).item() == pytest.approx(5.25, rel=0.02)


# -- latent adversarial distillation ---------------------------------------------------------------------------------------


def conditions_of(teacher: Teacher, size: int) -> Conditions:
    guided = teacher.spec.guidance.mode != "none"
    label_B = torch.arange(size) % 10 if teacher.spec.condition.kind == "label" else None
    return Conditions(label_B=label_B, w_B=torch.linspace(1.0, 4.0, size) if guided else None)


@pytest.mark.parametrize("name", ["points", "images"])
def test_features_are_read_at_the_end_of_every_stage(name, request):
    teacher = request.getfixturevalue(name)
    judge, c = FeatureJudge(teacher, tells_steps=True), conditions_of(teacher, 6)
    x, t_B = torch.randn(6, *teacher.spec.sample_shape), torch.rand(6)
    features = teacher_features(teacher, judge.taps, x, t_B, c)
    assert len(judge.taps) == {"points": 4, "images": 5}[name]
    made_at_B = torch.tensor([1.0, 0.75, 0.5, 0.25, 1.0, 0.5])
    assert torch.equal(judge(features, t_B, made_at_B, c), torch.zeros(6, len(judge.taps))), "heads start at 0"
    logits = awake(judge)(features, t_B, made_at_B, c)
    assert logits.std(0).min() > 0
    told = judge(features, t_B, made_at_B.flip(0), c) != logits
    assert told.any(dim=1).tolist() == (made_at_B.flip(0) != made_at_B).tolist(), "every step is judged by itself"
    assert {id(p) for p in judge.parameters()}.isdisjoint(id(p) for p in teacher.network.parameters())
    assert not any(module._forward_hooks for module in teacher.network.modules())


@pytest.mark.parametrize("kind", LOSSES)
@pytest.mark.parametrize("name", ["points", "images"])
def test_equal_images_move_nobody(name, kind, request):
    """The student's images are the real ones and the heads say nothing yet: both gradients are exactly zero."""
    teacher = request.getfixturevalue(name)
    judge, draws, c = FeatureJudge(teacher), Draws(0, 0, 8), conditions_of(teacher, 8)
    real = torch.randn(8, *teacher.spec.sample_shape)
    made = real.clone().requires_grad_()
    method = LatentAdversarial(loss=kind)
    images = SideBySide(real=real, made=made, made_at_B=torch.ones(8), conditions=c)
    losses = method.adversarial(teacher, judge, images, draws)
    sum(losses.values()).backward()
    assert torch.equal(made.grad, torch.zeros_like(made))
    assert not any(p.grad is not None and p.grad.abs().max() > 1e-7 for p in judge.parameters())
    moved = dataclasses.replace(images, made=(made + 1.0).detach())
    other = method.adversarial(teacher, judge, moved, draws)
    other["discriminator"].backward()
    assert any(p.grad.abs().max() > 1e-4 for p in judge.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["points", "images"])
def test_the_losses_touch_disjoint_weights(name, request):
    teacher = request.getfixturevalue(name)
    method = LatentAdversarial(num_pairs=16, teacher_steps=2, judge_warmup=0)
    networks, draws = method.networks(teacher), Draws(0, 0, 8)
    both = networks["both"]
    awake(both.discriminator)
    batch = (Grid25() if name == "points" else digits()).batch(draws)
    losses = method.losses(method.phases(teacher.spec)[0], 0, networks, teacher, batch, draws)
    assert set(losses) == {"discriminator", "generator", "steepness_real", "steepness_made"}
    for loss, value in losses.items():
        both.zero_grad()
        value.backward(retain_graph=True)
        owner, other = (both.student, both.discriminator) if loss == "generator" else (both.discriminator, both.student)
        assert any(p.grad is not None and p.grad.any() for p in owner.parameters()), loss
        assert not any(p.grad is not None and p.grad.any() for p in other.parameters()), loss
    assert not any(p.requires_grad for p in teacher.network.parameters())


class WithFeatures(GaussianTeacher):
    """The exact teacher of a Gaussian whose only stage shows the state and its squares: all that tells two of them apart."""

    class Squares(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x, x.square()], dim=1).flatten(1)

    def __init__(self) -> None:
        super().__init__(MEAN, STD)
        self.backbone = torch.nn.Module()
        self.backbone.blocks = torch.nn.ModuleList([self.Squares()])

    def forward(self, x, time_B):
        self.backbone.blocks[0](x)
        return super().forward(x, time_B)


def gaussian_teacher() -> Teacher:
    spec = dataclasses.replace(plain_spec(3), networks=(NetworkSpec(kind="mlp", config={"num_blocks": 1}),))
    return Teacher(spec, WithFeatures())


def test_a_generator_ends_with_the_mean_and_the_spread_of_the_teachers_images():
    teacher, method = (
        gaussian_teacher(),
        LatentAdversarial(steps=1, start=1.0, num_pairs=4096, judge_steps=1, judge_warmup=0, smoothness=0.1),
    )
    torch.manual_seed(0)
    student = AffineOfTime(3, num_knots=2)
    with torch.no_grad():  # images near the origin with a third of the spread
        student.weight.fill_(-0.3)
    networks = {
        "student": student,
        "both": GeneratorAndDiscriminator(student, FeatureJudge(teacher)),
        "pairs": PairCache(teacher.spec, 4096),
    }
    z, table = unit(4096), method.contract(teacher.spec).plans[1]
    fit(method, method.phases(teacher.spec)[0], networks, teacher, iterations=600, learning_rate=1e-2, trained="both")
    made = run(student, table, z).flatten(1)
    torch.testing.assert_close(made.mean(0), exact_teacher().mean.flatten(), atol=0.1, rtol=0.0)
    torch.testing.assert_close(made.std(0), exact_teacher().std.flatten(), atol=0.1, rtol=0.0)


@pytest.mark.parametrize("inputs", ["real", "own"])
@pytest.mark.parametrize("start", [1.0, 0.75])
def test_the_first_evaluation_sees_noise_alone(start, inputs):
    """As generation does: nothing of an image is left in the state of the first row; later rows see a real one, or its own."""
    teacher = gaussian_teacher()
    method = LatentAdversarial(steps=2, start=start, inputs=inputs, num_pairs=64, judge_warmup=0)
    cache, seen = PairCache(teacher.spec, 64), []
    cache.x0_NCHW.fill_(1000.0)
    cache.count.fill_(64)

    class Student(AffineOfTime):
        def forward(self, x, time_B):
            seen.extend(
                zip(PROCESS.t_from_model_time(time_B).tolist(), x.flatten(1).abs().amax(dim=1).tolist(), strict=True)
            )
            return super().forward(x, time_B)

    student = Student(3, num_knots=2)
    torch.nn.init.constant_(student.bias, 300.0)  # v: its images are nearly as large
    both = GeneratorAndDiscriminator(student, FeatureJudge(teacher))
    batch = Batch(x0_BCHW=torch.zeros(64, 3, 1, 1), label_B=None)
    networks = {"student": student, "both": both, "pairs": cache}
    method.losses(method.phases(teacher.spec)[0], 0, networks, teacher, batch, Draws(0, 0, 64))
    first, later = ([size for t, size in seen if (t > 0.6 * start) == is_first] for is_first in (True, False))
    assert len(first) > 32
    assert max(first) < 10.0
    low, high = {"real": (600.0, 900.0), "own": (150.0, 300.0)}[inputs]
    assert later
    assert low < min(later) <= max(later) < high


def test_the_judge_learns_alone_at_first_and_faster():
    teacher, method = gaussian_teacher(), LatentAdversarial(steps=1, num_pairs=8, judge_steps=2, judge_warmup=3)
    (phase,) = method.phases(teacher.spec)
    assert phase.rates == (("discriminator", method.judge_rate),)
    networks = {
        "student": (student := AffineOfTime(3, num_knots=2)),
        "both": GeneratorAndDiscriminator(student, FeatureJudge(teacher)),
        "pairs": PairCache(teacher.spec, 8),
    }
    batch = Batch(x0_BCHW=torch.zeros(8, 3, 1, 1), label_B=None)
    steps = [
        step
        for step in range(8)
        if "generator" in method.losses(phase, step, networks, teacher, batch, Draws(0, step, 8))
    ]
    assert steps == [4, 6]


@pytest.mark.parametrize(
    ("method", "wrong"),
    [
        (LatentAdversarial, {"steps": 0}),
        (LatentAdversarial, {"start": 0.0}),
        (LatentAdversarial, {"first_share": 1.5}),
        (LatentAdversarial, {"judge_steps": 0}),
        (LatentAdversarial, {"judge_rate": 0.0}),
        (LatentAdversarial, {"judge_warmup": -1}),
        (LatentAdversarial, {"smoothness": -1.0}),
        (LatentAdversarial, {"level_std": 0.0}),
        (LatentAdversarial, {"num_pairs": 0}),
    ],
)
def test_settings_out_of_range(method, wrong):
    with pytest.raises(UsageError):
        method(**wrong)
