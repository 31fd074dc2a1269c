"""A run that stops anywhere ends as if it had not stopped; signals, full disks."""

from __future__ import annotations

import signal
import threading
from typing import Any

import pytest
from short_runs import Stop, stop_at
from toy_method import CALLS, Toy, result, same, trainer

from distill_rt.core.errors import ArtifactError, ResourceError
from distill_rt.training.checkpoint import read_head


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
