"""Relational features and bk_sdm: closed forms, the task of the data beside the teacher's answer, refusals."""

import dataclasses

import pytest
import torch
from torch import nn

from distill_rt.core.errors import UsageError
from distill_rt.models import build_network
from distill_rt.training.config import TrainConfig
from distill_rt.training.data import Batch, Grid25, digits
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.features import relational_loss, relative_error
from distill_rt.training.losses import denoising_error
from distill_rt.training.methods import BlockRemoval, FeatureKD
from distill_rt.training.predictor import Conditions, Teacher
from distill_rt.training.recipes import RECIPES
from distill_rt.training.trainer import Trainer


def teacher_of(recipe, std=0.1, **changes):
    spec = dataclasses.replace(RECIPES[recipe]().spec, **changes)
    torch.manual_seed(0)
    network = build_network(spec.networks[0])
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std)
    return Teacher(spec, network)


@pytest.fixture(scope="module")
def grid():
    return teacher_of("grid25-teacher")


def losses_of(method, teacher, dataset, *, size=16, networks=None):
    draws = Draws(3, 0, size)
    networks = networks or method.networks(teacher)
    phase = method.phases(teacher.spec)[0]
    return method.losses(phase, 0, networks, teacher, dataset.batch(draws), draws), networks


# -- relations ------------------------------------------------------------------------------------------------------------


def test_relations_know_no_scale_no_place_and_no_rotation():
    features = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1)))[0]
    assert relational_loss(3.0 * features @ rotation + 2.0, features) < 1e-9
    assert relational_loss(features.roll(1, 0), features) > 0.01


def test_relations_of_triangles_in_closed_form():
    """Equilateral: distances 1 over their mean, cosines 1/2. Right-angled: sides 1, 1, sqrt 2; cosines 0 and twice 1/sqrt 2."""
    equilateral = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    right = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    root = 2.0**0.5
    mean = (2.0 + root) / 3.0
    gaps = [1.0 / mean - 1.0, 1.0 / mean - 1.0, root / mean - 1.0]
    distance = sum(0.5 * gap**2 for gap in gaps) / 3.0
    angle = (0.5 * 0.5**2 + 2 * 0.5 * (1 / root - 0.5) ** 2) / 3.0
    assert relational_loss(right, equilateral).item() == pytest.approx(distance + 2.0 * angle, rel=1e-5)


def test_images_that_coincide_have_finite_gradients():
    student = torch.ones(4, 3, requires_grad=True)
    relational_loss(student, torch.randn(4, 3)).backward()
    assert torch.isfinite(student.grad).all()


def test_a_unet_taught_by_relations():
    teacher = teacher_of("digits-teacher")
    same, _ = losses_of(FeatureKD(features="relational"), teacher, digits(), size=6)
    assert {name: value.item() for name, value in same.items()} == {"output": 0.0, "features": 0.0}
    narrow, networks = losses_of(FeatureKD(features="relational", width=0.5), teacher, digits(), size=6)
    assert narrow["features"] > 0
    assert not networks["pair"].hints  # relations need no projection
    narrow["features"].backward()
    assert any(p.grad is not None and p.grad.any() for p in networks["student"].parameters())


# -- block removal --------------------------------------------------------------------------------------------------------


def test_the_same_network_has_the_task_of_a_diffusion_model_left(grid):
    losses, networks = losses_of(BlockRemoval(blocks="all"), grid, Grid25(), size=64)
    assert losses["output"].item() == losses["features"].item() == 0.0
    draws = Draws(3, 0, 64)
    batch, t_B, eps = Grid25().batch(draws), draws.uniform(Purpose.TIME), draws.normal((2, 1, 1))
    x_t = grid.process.add_noise(batch.x0_BCHW, eps, t_B)
    v = grid.spec.parameterization.target(x_t, batch.x0_BCHW, grid.process.at(t_B).like(x_t))
    error = denoising_error(grid.spec, networks["student"], batch.x0_BCHW, t_B, eps, Conditions()).mean()
    torch.testing.assert_close(losses["task"], error / v.square().mean(), rtol=1e-4, atol=1e-6)
    half, _ = losses_of(BlockRemoval(blocks="all", task_weight=0.5), grid, Grid25(), size=64)
    torch.testing.assert_close(half["task"], 0.5 * losses["task"])


def test_it_is_feature_kd_with_a_block_fewer(grid):
    assert BlockRemoval().contract(grid.spec).networks == FeatureKD(blocks="base").contract(grid.spec).networks
    assert BlockRemoval().contract(grid.spec).plans == grid.spec.plans
    assert BlockRemoval(steps=8).contract(grid.spec).steps == (8,)


def test_networks_are_compared_at_every_time(grid):
    seen = []
    handle = grid.network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    losses_of(BlockRemoval(), grid, Grid25(), size=256)
    handle.remove()
    t_B = grid.process.t_from_model_time(seen[0])
    assert len(set(t_B.tolist())) > 250
    assert t_B.min() < 0.05
    assert t_B.max() > 0.95


class Constant:
    """One image, always."""

    sample_shape, num_classes, has_captions = (2, 1, 1), 0, False

    def batch(self, draws):
        return Batch(x0_BCHW=torch.full((draws.num_samples, 2, 1, 1), 0.5), label_B=None)


def test_training_goes_where_the_weights_say(grid):
    """A random teacher and data it has never seen: without the task the network ends with the teacher's answer, with much of
    it near that of the data, which is known for one image: x0."""
    far = {}
    for task_weight in (0.0, 1000.0):
        method = BlockRemoval(task_weight=task_weight, features="none", iterations=300, batch_size=64)
        network, _ = Trainer(TrainConfig(method=method, identity={}), Constant(), grid).run()
        draws = Draws(9, 10_000, 256)
        x0 = Constant().batch(draws).x0_BCHW
        t_B = 0.2 + 0.6 * draws.uniform(Purpose.TIME)
        x_t = grid.process.add_noise(x0, draws.normal((2, 1, 1)), t_B)
        answer = network(x_t, grid.process.model_time(t_B))
        truth = grid.spec.parameterization.target(x_t, x0, grid.process.at(t_B).like(x_t))
        far["teacher", task_weight] = relative_error(answer, grid.network(x_t, grid.process.model_time(t_B))).item()
        far["data", task_weight] = relative_error(answer, truth).item()
    assert far["teacher", 0.0] < 0.1 < far["teacher", 1000.0]
    assert far["data", 1000.0] < 0.1 < far["data", 0.0]


def test_teachers_and_settings_that_make_no_sense(grid):
    distilled = dataclasses.replace(grid.spec, provenance={"method": "progressive", "teacher": "0" * 64})
    with pytest.raises(UsageError, match="was distilled by progressive") as caught:
        BlockRemoval().phases(distilled)
    assert "feature_kd" in caught.value.hint
    again = dataclasses.replace(grid.spec, provenance={"method": "bk_sdm", "teacher": "0" * 64})
    assert BlockRemoval().phases(again)  # once more is still a diffusion model
    with pytest.raises(UsageError, match="task_weight"):
        BlockRemoval(task_weight=-1.0)
    with pytest.raises(UsageError, match="states=data"):
        BlockRemoval(states="student")
    with pytest.raises(UsageError, match="feature_weight"):
        BlockRemoval(feature_weight=-1.0)
