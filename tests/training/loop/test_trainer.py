"""The loop: what it calls, what it averages and records, and what it refuses."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from short_runs import Stop, stop_at
from torch import nn
from toy_method import CALLS, Toy, result, same, trainer

from distill_rt.core.errors import ResourceError, UsageError
from distill_rt.training.data import Grid25
from distill_rt.training.draws import Draws
from distill_rt.training.methods.base import Phase


def test_the_method_is_asked_in_order():
    seen = []
    run = trainer()
    CALLS.clear()
    run.run(progress=lambda *arguments: seen.append(arguments))
    expected = []
    for step in range(9):
        phase = "one" if step < 5 else "two"
        expected += [("begin", phase)] if step in (0, 5) else []
        expected += [("losses", phase, step), ("rate", phase, step), ("after", phase, step)]
    assert expected == CALLS
    assert [(name, done, total) for name, done, total, _ in seen] == [
        ("one" if step < 5 else "two", step + 1, 9) for step in range(9)
    ]


def test_equal_runs_are_equal_whatever_happened_before():
    first = result(trainer())
    torch.randn(100)
    assert same(result(trainer()), first)
    assert not same(result(trainer(seed=1)), first)


def test_the_loss_is_the_sum_and_its_average_is_recorded():
    seen = []
    _, losses = trainer().run(progress=lambda name, done, total, loss: seen.append(loss))
    assert losses == [(step, seen[step]) for step in range(9)]
    first = 1.0 + 0.01  # both networks start equal, so every error is 1
    assert seen[0] == pytest.approx(first)
    assert len(trainer(Toy(first=1000)).run()[1]) == pytest.approx(200, abs=5)


def test_an_average_is_exported_where_the_method_wants_one():
    live = result(trainer())
    averaged = trainer(Toy(ema_decay=0.5))
    assert not same(result(averaged), live)
    assert same((list(averaged.state.networks["student"].state_dict().values()), live[1]), live)


def test_the_average_forgets_its_start():
    start = list(trainer(Toy(first=2, second=0)).state.networks["student"].state_dict().values())
    one, two = (result(trainer(Toy(first=n, second=0, decays=False)))[0] for n in (1, 2))
    averaged = result(trainer(Toy(first=2, second=0, decays=False, ema_decay=0.999)))[0]
    for a, x0, x1, x2 in zip(averaged, start, one, two, strict=True):
        after_one = 0.1 * x0 + 0.9 * x1  # decay (1 + step) / (10 + step)
        torch.testing.assert_close(a, 2 / 11 * after_one + 9 / 11 * x2, rtol=1e-5, atol=1e-6)


def test_gradients_are_clipped(monkeypatch):
    norms = []
    real = torch.optim.AdamW.step

    def step(self, *arguments, **options):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
        return real(self, *arguments, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    trainer(Toy(scale=1e6)).run()
    assert norms == pytest.approx([1.0] * 9, rel=1e-3)


@dataclass(frozen=True, kw_only=True)
class TwoRates(Toy):
    """One phase; the second layer learns at a hundredth of the rate."""

    def phases(self, teacher):
        return (Phase(name="one", network="student", start=0, iterations=9, rates=(("slow", 0.01),)),)

    def networks(self, teacher):
        made = {"student": nn.Sequential(nn.Linear(2, 2)), "other": nn.Linear(2, 2)}
        made["student"].add_module("slow", nn.Linear(2, 2))
        return made

    def begin(self, phase, networks):
        pass


def test_a_part_with_its_own_rate(tmp_path):
    run = trainer(TwoRates(), tmp_path / "checkpoint")
    before = {name: value.detach().clone() for name, value in run.state.networks["student"].named_parameters()}
    with pytest.raises(Stop):
        run.run(progress=stop_at(1))
    after = dict(run.state.networks["student"].named_parameters())
    moved = {name: float((after[name].detach() - before[name]).abs().max()) for name in before}
    # The first step of Adam moves every weight by its rate (and the little that decay takes).
    assert moved["0.weight"] == pytest.approx(0.1, rel=1e-2)
    assert moved["slow.weight"] == pytest.approx(0.001, rel=1e-2)


def test_parts_with_their_own_rate_are_resumed(tmp_path):
    whole = result(trainer(TwoRates()))
    with pytest.raises(Stop):
        trainer(TwoRates(), tmp_path / "checkpoint").run(progress=stop_at(6))
    assert same(whole, result(trainer(TwoRates(), tmp_path / "checkpoint"), resume=True))


def test_draws_are_those_of_the_step(monkeypatch):
    seen: list[Draws] = []
    batch = Grid25.batch

    def noting(self, draws):
        seen.append(draws)
        return batch(self, draws)

    monkeypatch.setattr(Grid25, "batch", noting)
    trainer(seed=7).run()
    for step, draws in enumerate(seen):
        assert torch.equal(draws.normal((2,)), Draws(7, step, 4).normal((2,)))
    assert len(seen) == 9


# -- settings and divergence ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "what"),
    [
        (Toy(batch_size=0), "batch_size"),
        (Toy(batch_size=-3), "batch_size"),
        (Toy(ema_decay=1.0), "ema_decay"),
        (Toy(ema_decay=-0.1), "ema_decay"),
        (Toy(ema_decay=float("nan")), "ema_decay"),
        (Toy(rate=-1.0), "learning rate"),
        (Toy(rate=float("nan")), "learning rate"),
        (Toy(rate=float("inf")), "learning rate"),
        (Toy(first=0, second=0), "no step at all"),
    ],
)
def test_settings_that_cannot_train(method, what):
    with pytest.raises(UsageError, match=what):
        trainer(method)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_that_are_none(seed):
    with pytest.raises(UsageError, match="seed must be 0 to"):
        trainer(seed=seed)
    trainer(seed=2**64 - 1).run()


def test_an_interval_that_is_none():
    with pytest.raises(UsageError, match="checkpoint_every"):
        trainer(every=0)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ({0: "nan loss"}, "the loss of step 0 (one) is nan"),
        ({7: "nan loss"}, "the loss of step 7 (two) is nan"),
        ({8: "inf loss"}, "the loss of step 8 (two) is inf"),
        ({4: "nan gradient"}, "the loss of step 5 (two) is nan"),
        ({8: "nan gradient"}, "the weights after the last step are not finite"),
    ],
)
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_divergence_leaves_nothing(tmp_path, spoil, said, ema_decay):
    """The checkpoint goes too: a resumed run draws the same numbers and ends at the same step in the same way."""
    with pytest.raises(ResourceError) as caught:
        trainer(Toy(spoil=spoil, ema_decay=ema_decay), tmp_path / "checkpoint", every=1).run()
    assert caught.value.code == "loss-not-finite"
    assert said in caught.value.message
    assert "peak_learning_rate" in caught.value.hint
    assert list(tmp_path.iterdir()) == []
