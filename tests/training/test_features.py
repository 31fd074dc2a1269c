"""Feature distances: zero where they must be, closed forms elsewhere, hooks that leave nothing behind."""

import pytest
import torch
from torch import nn

from distill_rt.training.features import (
    LOSSES,
    Hint,
    attention_loss,
    hint_loss,
    relative_error,
    similarity_loss,
    tapped,
)


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_equal_features_have_no_loss_and_no_gradient(loss):
    features = torch.randn(6, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    student = features.clone().requires_grad_()
    value = loss(student, features)
    (gradient,) = torch.autograd.grad(value, student)
    assert value.item() == 0.0
    assert torch.count_nonzero(gradient) == 0


@pytest.mark.parametrize("loss", LOSSES.values(), ids=list(LOSSES))
def test_gradients_reach_the_student_only(loss):
    student, teacher = (torch.randn(6, 5, 4, 4).requires_grad_() for _ in range(2))
    loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("loss", [attention_loss, similarity_loss])
def test_losses_without_projection_compare_different_widths(loss):
    teacher = torch.randn(6, 8, 4, 4)
    doubled = teacher[:, ::2].repeat(1, 3, 1, 1)
    assert loss(doubled, teacher[:, ::2]).item() < 1e-10  # the scale of the energy does not count
    assert loss(torch.randn(6, 3, 4, 4), teacher) > 0.01


def test_closed_forms():
    assert relative_error(torch.ones(2, 3), 2 * torch.ones(2, 3)).item() == 0.25
    assert relative_error(torch.ones(2, 3), torch.zeros(2, 3)).isfinite()
    assert hint_loss(torch.zeros(2, 3), torch.randn(2, 3)).item() == pytest.approx(1.0)
    # All energy at one of two positions against all at the other: two unit vectors at a right angle.
    left, right = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[0.0, 3.0]]]])
    assert attention_loss(left, right).item() == pytest.approx(2.0)
    # Two images that look alike, G = [[1, 1], [1, 1]] / sqrt 2, against two at a right angle, G = 1.
    alike, apart = torch.ones(2, 2), torch.eye(2)
    rows = 2 * ((1 - 0.5**0.5) ** 2 + 0.5)
    assert similarity_loss(alike, apart).item() == pytest.approx(rows / 2)


def test_a_hint_starts_with_the_channels_that_were_kept():
    kept = torch.tensor([[1.0, 0, 0], [0, 0, 1.0]])
    features = torch.randn(4, 2, 5, 5)
    projected = Hint(kept)(features)
    assert projected.shape == (4, 3, 5, 5)
    assert torch.equal(projected[:, [0, 2]], features)
    assert not projected[:, 1].any()
    assert Hint(kept)(torch.randn(4, 2)).shape == (4, 3)


def test_hooks_are_gone_after_the_context_even_if_it_raises():
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    with tapped(network, ["0", "1"]) as seen:
        out = network(x)
        assert torch.equal(seen["0"], network[0](x))
        assert torch.equal(seen["1"], out)
    with pytest.raises(RuntimeError), tapped(network, ["0"]):
        network(torch.randn(5, 9))
    assert not any(module._forward_hooks for module in network.modules())
    seen.clear()
    network(x)
    assert seen == {}


def test_states_of_stages_and_tokens():
    class Stage(nn.Module):
        def forward(self, x):
            return x + 1, (x,)

    stage = nn.Sequential(Stage())
    with tapped(stage, ["0"]) as seen:
        stage(torch.zeros(2, 3, 4, 4))
    assert torch.equal(seen["0"], torch.ones(2, 3, 4, 4))
    tokens = nn.Sequential(nn.Identity())
    with tapped(tokens, ["0"]) as seen:
        tokens(torch.zeros(2, 16, 3))
    assert seen["0"].shape == (2, 3, 16)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_are_in_float32_under_autocast(name):
    """Features two percent apart: products in bfloat16 would be off by more than their distance."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(8, 6, 4, 4, generator=generator).bfloat16()
    student = (teacher.float() + 0.02 * torch.randn(teacher.shape, generator=generator)).bfloat16()
    exact = LOSSES[name](student.float(), teacher.float())
    with torch.autocast("cpu", torch.bfloat16):
        loss = LOSSES[name](student, teacher)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=1e-5, atol=0)
