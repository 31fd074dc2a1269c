"""From a published ``scheduler_config.json`` to a step table: what students and teachers of the hub are run with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from distill_rt.core.errors import UsageError
from distill_rt.core.samplers.from_scheduler.ddim import ddim_from_scheduler, ddpm_from_scheduler
from distill_rt.core.samplers.from_scheduler.dpm_solver import dpm_solver_from_scheduler
from distill_rt.core.samplers.from_scheduler.edm import consistency_from_scheduler, edm_euler_from_scheduler
from distill_rt.core.samplers.from_scheduler.euler import (
    euler_ancestral_from_scheduler,
    euler_from_scheduler,
    heun_from_scheduler,
)
from distill_rt.core.samplers.from_scheduler.flow_match import flow_match_from_scheduler
from distill_rt.core.samplers.from_scheduler.options import Options
from distill_rt.core.samplers.from_scheduler.skipping import lcm_from_scheduler, tcd_from_scheduler
from distill_rt.core.table import StepTable

SCHEDULERS: Mapping[str, Callable[[Options, int], StepTable]] = {
    "DDIMScheduler": ddim_from_scheduler,
    "DDPMScheduler": ddpm_from_scheduler,
    "EulerDiscreteScheduler": euler_from_scheduler,
    "EulerAncestralDiscreteScheduler": euler_ancestral_from_scheduler,
    "HeunDiscreteScheduler": heun_from_scheduler,
    "LCMScheduler": lcm_from_scheduler,
    "TCDScheduler": tcd_from_scheduler,
    "DPMSolverMultistepScheduler": dpm_solver_from_scheduler,
    "FlowMatchEulerDiscreteScheduler": flow_match_from_scheduler,
    "CMStochasticIterativeScheduler": consistency_from_scheduler,
    "EDMEulerScheduler": edm_euler_from_scheduler,
}


def table_from_scheduler_config(config: Mapping[str, Any], num_steps: int, **options: Any) -> StepTable:
    """Compile a scheduler configuration of diffusers to a step table with the same samples.

    A run of the table equals the scheduler on the same network outputs and noise (tests/parity). The state is kept in the
    coordinates of the noise process; see `distill_rt.core.samplers.from_scheduler`.

    Args:
        config: the parsed JSON; ``_class_name`` selects the sampler. Keys that only other schedulers declare are ignored,
            as that class ignores them.
        num_steps: what would be passed to ``set_timesteps``.
        options: what would be passed to ``set_timesteps`` or ``step`` beside: ``eta``, ``timesteps``, ``sigmas``, ``mu``,
            ``s_churn`` and the like; each class's function names its own.

    Raises:
        UsageError: unsupported class, option or value (naming the supported ones), or a step count out of range.
    """
    name = config.get("_class_name") if isinstance(config, Mapping) else None
    if name not in SCHEDULERS:
        raise UsageError(
            f"scheduler {name!r} is not supported: use one of {', '.join(SCHEDULERS)}",
            code="scheduler-unsupported",
            hint="set _class_name in scheduler_config.json to one of them",
            details={"supported": list(SCHEDULERS)},
        )
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise UsageError(
            f"the number of steps must be a positive integer, got {num_steps!r}",
            code="steps-out-of-range",
            hint="for example 4",
        )
    try:
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return SCHEDULERS[str(name)](Options(config, options), num_steps)
    except (ValueError, ArithmeticError) as error:  # values each in range that give no finite coefficients together
        raise UsageError(
            f"{name}: this configuration gives no usable coefficients for {num_steps} steps: {error}",
            code="option-invalid",
            hint="check the betas, sigmas and timesteps of the scheduler configuration",
        ) from error
