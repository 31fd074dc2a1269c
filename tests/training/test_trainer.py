"""The loop: what it calls, and that a run which stops anywhere ends as if it had not stopped."""

from __future__ import annotations

import dataclasses
import signal
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from closed_forms import plain_spec
from torch import nn

from distill_rt.core.errors import ArtifactError, ResourceError, UsageError
from distill_rt.training.checkpoint import read_head
from distill_rt.training.config import TrainConfig
from distill_rt.training.data import Grid25
from distill_rt.training.draws import Draws
from distill_rt.training.methods.base import Phase
from distill_rt.training.predictor import Teacher
from distill_rt.training.trainer import Trainer

CALLS: list[tuple[Any, ...]] = []


@dataclass(frozen=True, kw_only=True)
class Toy:
    """Two phases that train two networks towards their batch's mean, and note what the trainer asks."""

    name: ClassVar[str] = "toy"

    batch_size: int = 4
    ema_decay: float = 0.0
    first: int = 5
    second: int = 4
    rate: float = 0.1
    scale: float = 1.0
    decays: bool = True
    spoil: dict[int, str] = field(default_factory=dict)
    """step -> how its loss goes wrong."""

    def phases(self, teacher):
        return tuple(
            phase
            for phase in (
                Phase(name="one", network="student", start=0, iterations=self.first),
                Phase(name="two", network="student", start=self.first, iterations=self.second, target=2),
            )
            if phase.iterations
        )

    def learning_rate(self, phase, step):
        CALLS.append(("rate", phase.name, step))
        return self.rate * (1 - (step - phase.start) / phase.iterations if self.decays else 1.0)

    def contract(self, teacher):
        return teacher

    def networks(self, teacher):
        return {"student": nn.Linear(2, 2), "other": nn.Linear(2, 2)}

    def begin(self, phase, networks):
        CALLS.append(("begin", phase.name))
        networks["other"].load_state_dict(networks["student"].state_dict())

    def losses(self, phase, step, networks, teacher, batch, draws):
        CALLS.append(("losses", phase.name, step))
        points = batch.x0_BCHW.flatten(1)
        error = networks["student"](points) - networks["other"](points).detach() + 1.0
        spoiled = {
            "nan loss": lambda: error.sum() * float("nan"),
            "inf loss": lambda: error.sum() * float("inf"),
            "nan gradient": lambda: (error - error).square().sum().sqrt(),
        }
        if step in self.spoil:
            return {"error": spoiled[self.spoil[step]]()}
        return {"error": self.scale * error.square().mean(), "size": 0.01 * error.abs().mean()}

    def after_step(self, phase, step, networks):
        CALLS.append(("after", phase.name, step))


@pytest.fixture(autouse=True)
def _fresh_calls():
    CALLS.clear()


def trainer(method: Any = None, checkpoint: Path | None = None, *, seed: int = 0, every: int = 3) -> Trainer:
    method = method or Toy()
    identity = {"seed": seed, **{key: value for key, value in dataclasses.asdict(method).items() if key != "spoil"}}
    config = TrainConfig(method=method, seed=seed, checkpoint=checkpoint, checkpoint_every=every, identity=identity)
    return Trainer(config, Grid25(), Teacher(plain_spec(2), nn.Identity()))


def result(run: Trainer, **arguments: Any) -> tuple[list[torch.Tensor], list[tuple[int, float]]]:
    network, losses = run.run(**arguments)
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    return [value.clone() for value in network.state_dict().values()], losses


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a[0], b[0], strict=True)) and a[1] == b[1]


class Stop(BaseException):
    """The end of a process, as far as the trainer can tell."""


def stop_at(step: int):
    def progress(phase, done, total, loss):
        if done == step:
            raise Stop

    return progress


# -- the loop -------------------------------------------------------------------------------------------------------------


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


# -- stopping and going on ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 2, 5, 100])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_a_run_that_stops_at_any_step_ends_as_if_it_had_not(tmp_path, every, ema_decay):
    """Also at the change of phase, where the optimiser starts afresh and the second network is refreshed."""
    method = Toy(ema_decay=ema_decay)
    whole = result(trainer(method))
    for step in range(1, 10):
        checkpoint = tmp_path / f"{step}"
        with pytest.raises(Stop):
            trainer(method, checkpoint, every=every).run(progress=stop_at(step))
        kept = (step - 1) // every * every
        assert checkpoint.exists() == (kept > 0)
        CALLS.clear()
        assert same(result(trainer(method, checkpoint, every=every), resume=True), whole)
        assert [call[2] for call in CALLS if call[0] == "losses"] == list(range(kept, 9))


def test_a_run_that_stops_again_and_again(tmp_path):
    whole = result(trainer())
    for step in (2, 5, 6, 9):
        with pytest.raises(Stop):
            trainer(checkpoint=tmp_path / "c", every=1).run(resume=True, progress=stop_at(step))
    assert same(result(trainer(checkpoint=tmp_path / "c", every=1), resume=True), whole)


def test_without_resume_a_checkpoint_is_not_read(tmp_path):
    with pytest.raises(Stop):
        trainer(checkpoint=tmp_path / "c", every=1).run(progress=stop_at(5))
    CALLS.clear()
    trainer(checkpoint=tmp_path / "c", every=100).run()
    assert ("losses", "one", 0) in CALLS


def test_another_configuration_is_refused(tmp_path):
    with pytest.raises(Stop):
        trainer(checkpoint=tmp_path / "c", every=1).run(progress=stop_at(5))
    with pytest.raises(ArtifactError, match=r"rate is 0\.1 there and 0\.2 now"):
        trainer(Toy(rate=0.2), tmp_path / "c").run(resume=True)
    with pytest.raises(ArtifactError, match="seed is 0 there and 3 now"):
        trainer(seed=3, checkpoint=tmp_path / "c").run(resume=True)
    assert (tmp_path / "c").exists()


class Ended(BaseException):
    """What the command line's own handler of SIGTERM raises."""


def end(number, frame):
    raise Ended(number)


@pytest.fixture
def handlers():
    """The handlers of a process in the foreground, whatever the test run itself was started with."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, end)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def signal_at(number: int, step: int):
    def progress(phase, done, total, loss):
        if done == step:
            signal.raise_signal(number)

    return progress


@pytest.mark.usefixtures("handlers")
@pytest.mark.parametrize(("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Ended)])
@pytest.mark.parametrize("step", range(1, 10))
def test_a_signal_keeps_the_last_complete_step(tmp_path, number, error, step):
    whole = result(trainer(Toy(ema_decay=0.9)))
    stopped = trainer(Toy(ema_decay=0.9), tmp_path / "c", every=100)
    with pytest.raises(error):
        stopped.run(progress=signal_at(number, step))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.getsignal(signal.SIGTERM) is end
    assert read_head(tmp_path / "c", stopped.config.identity).step == step
    assert same(result(trainer(Toy(ema_decay=0.9), tmp_path / "c"), resume=True), whole)


@pytest.mark.usefixtures("handlers")
def test_a_signal_without_a_checkpoint_still_ends_the_run():
    with pytest.raises(KeyboardInterrupt):
        trainer().run(progress=signal_at(signal.SIGINT, 3))


@pytest.mark.usefixtures("handlers")
def test_a_second_signal_acts_at_once(tmp_path):
    def progress(phase, done, total, loss):
        if done == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the second one must not return")

    with pytest.raises(KeyboardInterrupt):
        trainer(checkpoint=tmp_path / "c", every=3).run(progress=progress)
    assert read_head(tmp_path / "c", trainer().config.identity).step == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.usefixtures("handlers")
def test_a_handler_that_does_nothing_still_ends_the_run(tmp_path):
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    with pytest.raises(KeyboardInterrupt):
        trainer(checkpoint=tmp_path / "c").run(progress=signal_at(signal.SIGTERM, 4))
    assert read_head(tmp_path / "c", trainer().config.identity).step == 4


@pytest.mark.usefixtures("handlers")
def test_an_ignored_signal_stays_ignored():
    """As in a background job of a script, which must outlive the Ctrl-C that is meant for another."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    whole = result(trainer())
    assert same(result(trainer(), progress=signal_at(signal.SIGINT, 4)), whole)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@pytest.mark.usefixtures("handlers")
def test_a_full_disk_ends_the_run_and_keeps_the_old_checkpoint(tmp_path, monkeypatch):
    from distill_rt.training import checkpoint

    real_write, calls = checkpoint.write_file, []

    def write(path, data):
        calls.append(path)
        if len(calls) == 4:
            raise OSError(28, "No space left on device")
        real_write(path, data)

    monkeypatch.setattr(checkpoint, "write_file", write)
    with pytest.raises(ResourceError, match="No space left"):
        trainer(checkpoint=tmp_path / "c", every=2).run()
    monkeypatch.undo()
    assert read_head(tmp_path / "c", trainer().config.identity).step == 2
    assert list(tmp_path.iterdir()) == [tmp_path / "c"]
    assert same(result(trainer(checkpoint=tmp_path / "c"), resume=True), result(trainer()))


def test_training_in_another_thread():
    """Where Python allows no signal handlers."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(result(trainer())))
    thread.start()
    thread.join()
    assert same(results[0], result(trainer()))
