"""rcfd: what a classifier compares, the phases around it, and the flow that a student still learns."""

import dataclasses

import pytest
import torch
from closed_forms import plain_spec
from gaussian_fit import AffineOfTime, GaussianData, denoiser, exact_teacher, relative, run, start_at, unit
from torch.nn import functional as F

from distill_rt.core.errors import UsageError
from distill_rt.core.spec import Condition
from distill_rt.models import build_network
from distill_rt.training.classifier import ImageClassifier
from distill_rt.training.config import TrainConfig
from distill_rt.training.copies import frozen_copy
from distill_rt.training.data import Batch, digits
from distill_rt.training.draws import Draws
from distill_rt.training.methods import ClassifierFeatures, Progressive
from distill_rt.training.methods.base import Phase
from distill_rt.training.methods.rcfd import doubt, feature_divergence
from distill_rt.training.predictor import Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.trainer import Trainer


def test_equal_features_have_no_divergence_and_no_gradient_unless_the_target_is_sharpened():
    features = torch.randn(6, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    same = feature_divergence(features, features.detach(), 1.0)
    (gradient,) = torch.autograd.grad(same, features)
    assert abs(same.item()) < 1e-6
    assert gradient.abs().max() < 1e-7
    assert feature_divergence(features, features.detach(), 0.5) > 0.01
    # Features are compared after a softmax, which knows no offset.
    assert feature_divergence(features + 3.0, features.detach(), 1.0) < 1e-6


def test_closed_form_of_the_divergence():
    """Target (2/3, 1/3), student (1/2, 1/2)."""
    target, student = torch.tensor([[2.0, 1.0]]).log(), torch.zeros(1, 2)
    want = 2 / 3 * torch.tensor(4 / 3).log() + 1 / 3 * torch.tensor(2 / 3).log()
    torch.testing.assert_close(feature_divergence(student, target, 1.0), want)
    squared = feature_divergence(student, target, 0.5)  # (4/5, 1/5)
    torch.testing.assert_close(squared, 4 / 5 * torch.tensor(8 / 5).log() + 1 / 5 * torch.tensor(2 / 5).log())


def test_doubt_is_least_for_sure_and_different_images():
    sure, unsure = 50.0 * torch.eye(4), torch.zeros(4, 4)
    alike = sure[:1].expand(4, 4)
    log4 = torch.tensor(4.0).log()
    for logits, entropy, diversity in ((sure, 0.0, log4), (unsure, log4, log4), (alike, 0.0, 0.0)):
        want = torch.as_tensor(0.75 * entropy - 0.25 * diversity)
        torch.testing.assert_close(doubt(logits, 0.75), want, rtol=1e-5, atol=1e-6)


def test_the_classifier_comes_first_and_few_steps_compare_features():
    spec = RECIPES["digits-teacher"]().spec
    method = ClassifierFeatures(steps=2, start_steps=16)
    phases, plain = method.phases(spec), Progressive(steps=2, start_steps=16).phases(spec)
    assert phases[0] == Phase(name="classifier", network="classifier", start=0, iterations=400)
    assert [phase.target for phase in phases[1:]] == [0, 8, 4, 2]
    assert [phase.start - 400 for phase in phases[1:]] == [phase.start for phase in plain]
    assert method.contract(spec).plans == Progressive(steps=2, start_steps=16).contract(spec).plans
    torch.manual_seed(0)
    teacher = Teacher(spec, build_network(spec.networks[0]))
    networks, draws = method.networks(teacher), Draws(0, 0, 4)
    named = [set(method.losses(p, p.start, networks, teacher, digits().batch(draws), draws)) for p in phases]
    compared = {"features", "regular", "halving"}
    assert named == [{"classifier"}, {"guidance"}, {"halving"}, compared, compared]


def test_the_classifier_learns_and_is_left_alone_afterwards():
    spec = RECIPES["digits-teacher"]().spec
    torch.manual_seed(0)
    teacher = Teacher(spec, build_network(spec.networks[0]))
    settings = {"guidance_iterations": 1, "start_steps": 8}
    method = ClassifierFeatures(classifier_iterations=120, last_iterations=1, batch_size=32, **settings)
    trainer = Trainer(TrainConfig(method=method, identity={}), digits(), teacher)
    seen = []

    def progress(phase, done, total, loss):
        if done >= 120:
            seen.append({k: v.clone() for k, v in trainer.state.networks["classifier"].state_dict().items()})

    trainer.run(progress=progress)
    before, *_, after = seen
    assert all(torch.equal(before[key], after[key]) for key in before)
    data = digits()
    logits = trainer.state.networks["classifier"](data.x0_NCHW)[1]
    assert (logits.argmax(1) == data.label_N).float().mean() > 0.8


class LabelledGaussian(GaussianData):
    num_classes = 2

    def batch(self, draws):
        x0 = super().batch(draws).x0_BCHW
        return Batch(x0_BCHW=x0, label_B=(x0[:, 0, 0, 0] > 0.5).long())


class IgnoresLabel(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, time, label):
        return self.network(x, time)


@pytest.mark.parametrize("weights", [{}, {"pixel_weight": 0.0, "temperature": 1.0, "regularization": 0.0}])
def test_two_steps_become_one(weights):
    """The exact map of the teacher's two halves, with a classifier of random features; of features alone, what they show."""
    labelled = dataclasses.replace(plain_spec(3), condition=Condition(kind="label", num_classes=2))
    teacher = Teacher(labelled, IgnoresLabel(exact_teacher()))
    method = ClassifierFeatures(steps=1, start_steps=2, **weights)
    table = Progressive(steps=1, start_steps=2).contract(plain_spec(3)).plans[1]
    halves = Progressive(steps=2, start_steps=4).contract(plain_spec(3)).plans[2]
    torch.manual_seed(0)
    student = start_at(AffineOfTime(3, num_knots=2), denoiser)
    classifier = ImageClassifier((3, 1, 1), 2).requires_grad_(False)
    networks = {
        "student": IgnoresLabel(student),
        "stage_teacher": frozen_copy(teacher.network),
        "classifier": classifier,
    }
    phase = method.phases(labelled)[-1]
    want = run(exact_teacher(), halves, unit())
    seen = (lambda x: x) if not weights else (lambda x: F.softmax(classifier(x.float())[0], dim=1))
    before = relative(seen(run(student, table, unit())), seen(want))
    optimizer = torch.optim.Adam(student.parameters(), lr=1e-2)
    for step in range(phase.start, phase.start + 500):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - (step - phase.start) / 500)
        draws = Draws(0, step, 256)
        losses = method.losses(phase, step, networks, teacher, LabelledGaussian().batch(draws), draws)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert relative(seen(run(student, table, unit())), seen(want)) < 0.25 * before
    assert all(p.grad is None for p in classifier.parameters())


def test_data_without_labels_and_settings_out_of_range():
    with pytest.raises(UsageError, match="'grid25-teacher' have no labels") as caught:
        ClassifierFeatures().phases(RECIPES["grid25-teacher"]().spec)
    assert "\n" not in caught.value.message
    for wrong in (
        {"temperature": 0.0},
        {"classifier_iterations": 0},
        {"feature_weight": -1.0},
        {"feature_weight": 0.0, "pixel_weight": 0.0},
        {"confidence": 1.5},
        {"steps": 3},
    ):
        with pytest.raises(UsageError):
            ClassifierFeatures(**wrong)
