"""Run a scheduler of diffusers and our table side by side: same network, same noise, float64 wherever diffusers lets us."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from distill_rt.core.errors import UsageError
from distill_rt.core.scheduler_config import table_from_scheduler_config
from distill_rt.core.table import StepTable, run_table

Array = NDArray[np.float64]

SHAPE = (2, 3, 4, 5)
STEPS = (1, 2, 4, 7, 20, 50)
TOLERANCE = 1e-5


def fake_network(x: Array, time: float, call: int) -> Array:
    """A smooth made-up network: wrong input scaling, a wrong time or a skipped call all change its output.

    Bounded, so that an error is not hidden by large outputs, and with small slopes, so that float32 rounding inside
    diffusers is not amplified.
    """
    rng = np.random.default_rng(call)
    F: Array = rng.standard_normal(x.shape) + 0.2 * np.tanh(x) + 0.1 * np.cos(0.01 * time)
    return F


def unit_noise(stream: int) -> Array:
    return np.random.default_rng(10_000 + stream).standard_normal(SHAPE)


def make_scheduler(monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]) -> Any:
    """The scheduler, its arithmetic in float64 where it lets us; its tables keep their float32 values."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    with monkeypatch.context() as patch:
        # torch's float32 square root (MKL) is off by one unit in the last place for a fifth of all inputs, differently from
        # one processor to the next; rescaling to zero terminal SNR turns that into 3e-3 of the first sigma. Pinned.
        patch.setattr(torch.Tensor, "sqrt", lambda self: torch.as_tensor(np.sqrt(self.numpy())))
        scheduler = getattr(diffusers, config["_class_name"]).from_config(config)
    if not hasattr(scheduler, "sigmas"):
        # 1 - alpha_bar_t / alpha_bar_s in float32 loses four digits near clean data (or gives the root of a negative number)
        for name in ("alphas_cumprod", "final_alpha_cumprod", "one"):
            if hasattr(scheduler, name):
                setattr(scheduler, name, getattr(scheduler, name).double())
    return scheduler


@pytest.fixture(autouse=True)
def _quiet_third_party() -> Iterator[None]:
    """Deprecations inside diffusers and the divisions by zero it is refused for are not ours to fix."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"diffusers\..*")
        yield


def run_diffusers(
    monkeypatch: pytest.MonkeyPatch,
    config: dict[str, Any],
    num_steps: int,
    *,
    set_timesteps: dict[str, Any] | None = None,
    step: dict[str, Any] | None = None,
) -> Array:
    """The sample of the scheduler itself.

    Schedulers draw noise in different dtypes (float32, the model's, an upcast one), which gives different streams from one
    seed; here every draw of step i is replaced by the float64 noise of stream i + 1.
    """
    torch = pytest.importorskip("torch")
    scheduler = make_scheduler(monkeypatch, config)
    explicit = set_timesteps or {}
    scheduler.set_timesteps(**({} if "timesteps" in explicit else {"num_inference_steps": num_steps}), **explicit)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
    if hasattr(scheduler, "set_begin_index"):
        # else it looks its first timestep up by value, and starts at the second of two equals
        scheduler.set_begin_index(0)
    step_index = 0

    def draw(shape: Any, **_: Any) -> Any:
        noise = unit_noise(step_index + 1)
        assert tuple(shape) == noise.shape
        return torch.from_numpy(noise)

    def to_but_keep_double(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self if self.dtype is torch.float64 and args == (torch.float32,) else original_to(self, *args, **kwargs)

    original_to = torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, "to", to_but_keep_double)  # several `step` cast the state down to float32
    monkeypatch.setattr(importlib.import_module(type(scheduler).__module__), "randn_tensor", draw, raising=False)
    x = torch.from_numpy(unit_noise(0)) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for step_index, t in enumerate(scheduler.timesteps):  # `draw` reads step_index
        x_in = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        F = torch.from_numpy(fake_network(x_in.double().numpy(), float(t), step_index))
        x = scheduler.step(F, t, x, return_dict=False, **(step or {}))[0].double()
    result: Array = x.numpy()
    return result


def run_ours(table: StepTable) -> Array:
    """The sample of our table, by the reference interpreter."""
    calls = iter(range(1000))

    def network(net_id: int, x: Array, time: float, second_time: float | None) -> Array:
        return fake_network(x, time, next(calls))

    return run_table(table, unit_noise(0), network, unit_noise)


Compare = Callable[..., None]


@pytest.fixture(params=STEPS)
def num_steps(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Assert that table and scheduler give the same sample.

    Called as ``compare(config, num_steps, set_timesteps={...}, step={...})``: the dictionaries go to those methods of the
    scheduler, and both to `table_from_scheduler_config`.
    """

    def check(
        config: dict[str, Any],
        num_steps: int,
        *,
        set_timesteps: dict[str, Any] | None = None,
        step: dict[str, Any] | None = None,
    ) -> None:
        expected = run_diffusers(monkeypatch, config, num_steps, set_timesteps=set_timesteps, step=step)
        assert np.all(np.isfinite(expected)), "diffusers itself gave no number: leave the case out and say why"
        table = table_from_scheduler_config(config, num_steps, **(set_timesteps or {}), **(step or {}))
        error = np.abs(run_ours(table) - expected).max() / np.abs(expected).max()
        assert error < TOLERANCE, f"relative error {error:.2e}"

    return check


@pytest.fixture
def refused_by_both(monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Assert that diffusers raises (or returns no numbers) and that we raise UsageError. Called like `compare`."""

    def check(config: dict[str, Any], num_steps: int, **arguments: dict[str, Any]) -> None:
        try:
            finite = bool(np.all(np.isfinite(run_diffusers(monkeypatch, config, num_steps, **arguments))))
        except (ValueError, IndexError, AssertionError, NotImplementedError, ZeroDivisionError):
            finite = False
        assert not finite, "diffusers runs this: so should we"
        options = {key: value for group in arguments.values() for key, value in group.items()}
        with pytest.raises(UsageError):
            table_from_scheduler_config(config, num_steps, **options)

    return check
