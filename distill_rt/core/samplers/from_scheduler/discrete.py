"""What all schedulers over a discrete beta schedule share: levels by timestep or sigma, predictions, clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.betas import BETA_SCHEDULES, alphas_bar, discrete_betas
from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import Prediction
from distill_rt.core.process import NoiseLevel
from distill_rt.core.samplers.from_scheduler.options import Options
from distill_rt.core.spacing import exponential_sigmas, karras_sigmas, unsupported

PREDICTIONS: Mapping[str, Prediction] = {
    "epsilon": Prediction.EPS,
    "sample": Prediction.X0,
    "v_prediction": Prediction.V,
}


def read_prediction(options: Options, names: Sequence[str] = tuple(PREDICTIONS)) -> Prediction:
    """``prediction_type`` in our terms."""
    return PREDICTIONS[options.choice("prediction_type", "epsilon", names)]


def read_alphas_bar(
    options: Options,
    *,
    beta_start: float = 0.0001,
    beta_end: float = 0.02,
    beta_schedule: str = "linear",
    rescalable: bool = True,
) -> NDArray[np.float64]:
    """alpha^2 by timestep, shape (T,), from the keys that every such class has; arguments are the class's defaults."""
    num = options.count("num_train_timesteps", 1000)
    trained = options.numbers("trained_betas")
    betas = discrete_betas(
        options.choice("beta_schedule", beta_schedule, BETA_SCHEDULES),
        num_train_timesteps=num,
        beta_start=options.positive("beta_start", beta_start),
        beta_end=options.positive("beta_end", beta_end),
        trained_betas=trained,
    )
    if len(betas) != num:
        raise UsageError(
            f"{options.class_name}: {len(betas)} trained_betas for {num} timesteps",
            code="option-invalid",
            hint="num_train_timesteps must be their number",
        )
    rescale = options.flag("rescale_betas_zero_snr", False) if rescalable else False
    return alphas_bar(betas, rescale_zero_snr=rescale)


def read_clipping(options: Options, *, clip_default: bool) -> dict[str, Any]:
    """Row arguments for static clipping or dynamic thresholding (which wins, as in diffusers)."""
    clips = options.flag("clip_sample", clip_default)
    clip_range = options.positive("clip_sample_range", 1.0)
    threshold = read_threshold(options)
    return threshold or ({"clip": clip_range} if clips else {})


def read_threshold(options: Options) -> dict[str, Any]:
    """Row arguments for dynamic thresholding, empty if off."""
    on = options.flag("thresholding", False)
    ratio, bound = options.positive("dynamic_thresholding_ratio", 0.995), options.positive("sample_max_value", 1.0)
    return {"threshold_ratio": ratio, "threshold_max": bound} if on else {}


def level_of_timestep(bar: NDArray[np.float64], timestep: float) -> NoiseLevel:
    """The level of an integer timestep."""
    value = float(bar[int(timestep)])
    return NoiseLevel(alpha=math.sqrt(value), sigma=math.sqrt(1.0 - value), model_time=float(timestep))


def level_of_sigma(sigma: float, model_time: float = 0.0) -> NoiseLevel:
    """The variance preserving level with sigma / alpha = `sigma`."""
    norm = math.sqrt(sigma**2 + 1.0)
    return NoiseLevel(alpha=1.0 / norm, sigma=sigma / norm, model_time=model_time)


def table_sigmas(bar: NDArray[np.float64], *, clip_zero_snr: bool = False) -> NDArray[np.float32]:
    """sigma / alpha by timestep, float32, rising.

    Args:
        clip_zero_snr: replace a last alpha_bar of 0 by 2^-24 (the largest sigma is then 4096), as diffusers does for the
            classes that divide by alpha.
    """
    single = bar.astype(np.float32)
    if clip_zero_snr:
        single[-1] = np.float32(2.0**-24)
    ratio: NDArray[np.float32] = np.sqrt((np.float32(1.0) - single) / single)
    return ratio


def read_sigma_grid(options: Options) -> str | None:
    """Which of the sigma grids is on: "karras", "exponential" or None.

    Raises:
        UsageError: several at once, or beta sigmas.
    """
    names = [name for name in ("karras", "exponential", "beta") if options.flag(f"use_{name}_sigmas", False)]
    if len(names) > 1:
        raise UsageError(
            f"{options.class_name}: only one of use_karras_sigmas, use_exponential_sigmas, use_beta_sigmas may be on",
            code="option-invalid",
            hint="turn the others off",
        )
    if names == ["beta"]:
        raise unsupported(
            f"{options.class_name}: use_beta_sigmas", True, ("use_karras_sigmas", "use_exponential_sigmas", "neither")
        )
    return names[0] if names else None


def sigma_grid(options: Options, kind: str, sigma_min: float, sigma_max: float, num: int) -> NDArray[np.float64]:
    """Karras or exponential sigmas; the configuration's sigma_min and sigma_max go before the arguments."""
    given_min, given_max = options.optional_positive("sigma_min"), options.optional_positive("sigma_max")
    low = sigma_min if given_min is None else given_min
    high = sigma_max if given_max is None else given_max
    return karras_sigmas(low, high, num) if kind == "karras" else exponential_sigmas(low, high, num)


def refuse_eps_at_zero_snr(options: Options, prediction: Prediction, levels: Sequence[NoiseLevel]) -> None:
    """Noise prediction at a level without signal divides by zero."""
    if prediction is Prediction.EPS and any(level.alpha == 0 for level in levels):
        raise UsageError(
            f"{options.class_name}: rescale_betas_zero_snr with epsilon prediction divides by zero at the first timestep",
            code="eps-at-zero-snr",
            hint="such networks predict v or the sample; correct prediction_type",
        )
