"""Read a scheduler configuration strictly: every key is used, known to have no effect, or refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from distill_rt.core.errors import UsageError
from distill_rt.core.spacing import unsupported

FOREIGN_KEYS = frozenset(
    [
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "clip_sample",
        "clip_sample_range",
        "set_alpha_to_one",
        "steps_offset",
        "prediction_type",
        "thresholding",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "timestep_spacing",
        "rescale_betas_zero_snr",
        "variance_type",
        "interpolation_type",
        "use_karras_sigmas",
        "use_exponential_sigmas",
        "use_beta_sigmas",
        "use_lu_lambdas",
        "use_flow_sigmas",
        "flow_shift",
        "sigma_min",
        "sigma_max",
        "sigma_data",
        "sigma_schedule",
        "timestep_type",
        "final_sigmas_type",
        "original_inference_steps",
        "timestep_scaling",
        "solver_order",
        "algorithm_type",
        "solver_type",
        "lower_order_final",
        "euler_at_final",
        "lambda_min_clipped",
        "use_dynamic_shifting",
        "time_shift_type",
        "shift",
        "base_shift",
        "max_shift",
        "base_image_seq_len",
        "max_image_seq_len",
        "invert_sigmas",
        "shift_terminal",
        "stochastic_sampling",
        "s_noise",
        "rho",
        "clip_denoised",
        "skip_prk_steps",
        "predict_x0",
        "disable_corrector",
        "solver_p",
    ]
)
"""Keys of some scheduler of diffusers. Configurations carry those of earlier classes along, and a class that does not declare
a key does not read it there either; a key outside this set is a mistake or from a newer version, and is refused."""


class Options:
    """One configuration and the caller's options, read key by key; `finish` refuses what nobody read.

    Args:
        config: parsed ``scheduler_config.json``.
        arguments: options of the call (eta, timesteps, ...); all must be used.
    """

    def __init__(self, config: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
        self.class_name = str(config["_class_name"])
        self._config = {key: value for key, value in config.items() if not key.startswith("_")}
        self._arguments = dict(arguments)
        self._read: set[str] = set()
        self._known_arguments: set[str] = set()

    def number(self, name: str, default: float) -> float:
        """A number (minus infinity included)."""
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise self._wrong(name, "a number", value)
        return float(value)

    def positive(self, name: str, default: float) -> float:
        """A finite number above zero."""
        value = self.number(name, default)
        if not 0.0 < value < math.inf:
            raise self._wrong(name, "a positive number", value)
        return value

    def optional_positive(self, name: str) -> float | None:
        """A finite number above zero, or None where the key is absent or null."""
        return None if self._get(name, None) is None else self.positive(name, 0.0)

    def count(self, name: str, default: int) -> int:
        """An integer of at least 1."""
        value = self.integer(name, default)
        if value < 1:
            raise self._wrong(name, "at least 1", value)
        return value

    def integer(self, name: str, default: int) -> int:
        value = self._get(name, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong(name, "an integer", value)
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false; null reads as false, as diffusers treats it."""
        value = self._get(name, default)
        if value is not None and not isinstance(value, bool):
            raise self._wrong(name, "true or false", value)
        return bool(value)

    def choice(self, name: str, default: Any, supported: Sequence[Any]) -> Any:
        """One of `supported`."""
        value = self._get(name, default)
        if value not in supported:
            raise unsupported(f"{self.class_name}: {name}", value, supported)
        return value

    def numbers(self, name: str) -> tuple[float, ...] | None:
        """A list of numbers, or None."""
        return _as_numbers(self, name, self._get(name, None))

    def argument(self, name: str, default: Any = None) -> Any:
        """An option of the call."""
        self._known_arguments.add(name)
        return self._arguments.get(name, default)

    def argument_number(self, name: str, default: float, *, low: float = -math.inf, high: float = math.inf) -> float:
        """A numeric option of the call within [low, high]."""
        value = self.argument(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
            raise self._wrong(name, f"a number in [{low}, {high}]", value)
        return float(value)

    def argument_numbers(self, name: str) -> tuple[float, ...] | None:
        """A list option of the call, or None."""
        return _as_numbers(self, name, self.argument(name))

    def without_effect(self, *names: str) -> None:
        """Keys that the scheduler declares but never reads: any value gives the same sampler."""
        self._read.update(names)

    def finish(self) -> None:
        """Refuse keys and options that were not read.

        Raises:
            UsageError: naming them and what would be understood.
        """
        unknown = sorted(set(self._config) - self._read - FOREIGN_KEYS)
        if unknown:
            raise UsageError(
                f"{self.class_name}: unknown configuration keys {', '.join(unknown)}",
                code="option-unknown",
                hint=f"understood: {', '.join(sorted(self._read))}",
            )
        unknown = sorted(set(self._arguments) - self._known_arguments)
        if unknown:
            raise UsageError(
                f"{self.class_name} takes no option {', '.join(unknown)}",
                code="option-unknown",
                hint=f"options: {', '.join(sorted(self._known_arguments)) or 'none'}",
            )

    def _get(self, name: str, default: Any) -> Any:
        self._read.add(name)
        return self._config.get(name, default)

    def _wrong(self, name: str, expected: str, value: Any) -> UsageError:
        return UsageError(
            f"{self.class_name}: {name} must be {expected}, got {value!r}",
            code="option-invalid",
            hint="correct the scheduler configuration",
        )


def _as_numbers(options: Options, name: str, value: Any) -> tuple[float, ...] | None:
    if value is None:
        return None
    items = list(value) if hasattr(value, "__iter__") and not isinstance(value, str | bytes) else None
    if not items or any(isinstance(item, bool | str) for item in items):
        raise options._wrong(name, "a list of numbers", value)
    return tuple(float(item) for item in items)
