"""What the consistency methods share: the boundary, the contract, pairs of neighbouring times and the loss.

A consistency function maps every point of a trajectory to its clean end. All methods here compare the student at (x_t, t)
with a target network at (x_s, s), s < t; they differ in who makes x_s (a teacher's step, or the same noise on the same image),
in the law of (t, s), and in the target network (Song et al. 2023, arXiv 2303.01469).

Levels are drawn as noise ratios sigma / alpha, which are the sigmas of the papers whatever the process.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from distill_rt.core.errors import UsageError
from distill_rt.core.prediction import Prediction
from distill_rt.core.process import NoiseProcess
from distill_rt.core.samplers.consistency import multistep_consistency
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import StepTable
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.plans import late_times, powers_of_two
from distill_rt.training.predictor import Conditions, Predictor

RATIO_LOG_MEAN, RATIO_LOG_STD, MIN_RATIO, MAX_RATIO = 0.0, 2.0, 0.002, 80.0
"""Log-normal law of the noise ratio and its range; students of it start from the upper end. The papers' mean of -1.1 belongs to
data of standard deviation 0.5 and to 400,000 iterations; at our 1,200 it leaves the first step untrained (docs/log.md)."""

MIN_PLAN_TIME = 1e-4
"""Of an evaluation; below it there is no noise left to remove."""

PairOfTimes = tuple[Tensor, Tensor, Tensor]
"""(t, s, weight), each (B,)."""


def require_boundary(teacher: StudentSpec) -> None:
    """A consistency function returns its input at t = 0; in plain x0 prediction a network would have to learn that.

    Raises:
        UsageError: plain x0 prediction.
    """
    network = teacher.parameterization
    if network.prediction is Prediction.X0 and network.preconditioning.kind == "none":
        raise UsageError(
            "a consistency student must return its input at t = 0; plain x0 prediction does not",
            code="no-consistency-boundary",
            hint="use a teacher with v, flow or eps prediction, or with EDM preconditioning",
        )


def renoise_plans(teacher: StudentSpec, steps: int, *, start: float = 1.0, power: float = 1.0) -> dict[int, StepTable]:
    """Plans of 1, 2, 4, ... `steps` evaluations with fresh noise between them, at ``start (1 - i / n)^power``.

    Noise at a high level throws away much of what the evaluation before has found, and there a guided student applies its
    guidance once more to what is guided already: with power 2 it is nearer to its teacher (docs/log.md). Students that train
    on the states of their own plan have the times of their training.

    Raises:
        UsageError: a power that is not positive, or so large that the last time has no noise.
    """
    if not (power > 0.0 and late_times(steps, power, start=start)[-1] >= MIN_PLAN_TIME):
        raise UsageError(
            f"plan_power must be positive, and small enough that the last of {steps} times is not 0; got {power:g}",
            code="setting-invalid",
            hint="1 to 3 are common",
        )
    return {
        n: multistep_consistency(teacher.process, teacher.parameterization, late_times(n, power, start=start))
        for n in powers_of_two(steps)
    }


def max_ratio_time(process: NoiseProcess) -> float:
    """The t of `MAX_RATIO`, at most 1."""
    return min(float(process.t_from_sigma_ratio(MAX_RATIO)), 1.0)


def grid_pair(num_levels: int, draws: Draws) -> PairOfTimes:
    """t on a uniform grid, s the next level down, weight 1."""
    i_B = draws.integers(1, num_levels + 1, Purpose.TIME)
    t_B = i_B / num_levels
    return t_B, (i_B - 1) / num_levels, torch.ones_like(t_B)


def ect_pair(process: NoiseProcess, exponent: int, draws: Draws) -> PairOfTimes:
    """Log-normal ratio, the next one ``ratio * max(0, 1 - 2^-(k+1) (1 + 8 sigmoid(-ratio)))``, weight 1 / (ratio - next).

    Geng et al. 2024 (arXiv 2406.14548), sections 3.2 and 3.3.

    Args:
        exponent: k; the pairs close up as it grows.
    """
    log_ratio = RATIO_LOG_MEAN + RATIO_LOG_STD * draws.normal((), Purpose.TIME)
    ratio_B = log_ratio.exp().clamp(max=MAX_RATIO)
    next_B = ratio_B * (1.0 - 2.0 ** -(exponent + 1) * (1.0 + 8.0 * torch.sigmoid(-ratio_B))).clamp(min=0.0)
    t_B, s_B = (process.t_from_sigma_ratio(r).clamp(0.0, 1.0) for r in (ratio_B, next_B))
    return t_B, s_B, 1.0 / (ratio_B - next_B)


def ict_pair(process: NoiseProcess, num_levels: int, draws: Draws) -> PairOfTimes:
    """Neighbours on Karras' grid of ratios (rho 7), drawn by the discretised log-normal law, weight 1 / (ratio - next).

    Song & Dhariwal 2023 (arXiv 2310.14189), sections 3.3 to 3.5: level i with probability proportional to
    ``erf((log r_{i+1} - mean) / (sqrt(2) std)) - erf((log r_i - mean) / (sqrt(2) std))``.
    """
    low, high = MIN_RATIO ** (1 / 7), MAX_RATIO ** (1 / 7)
    ratio_N = torch.linspace(low, high, num_levels, dtype=torch.float64, device=draws.device) ** 7
    cumulative_N = torch.special.erf((ratio_N.log() - RATIO_LOG_MEAN) / (math.sqrt(2.0) * RATIO_LOG_STD))
    edges = (cumulative_N - cumulative_N[0]) / (cumulative_N[-1] - cumulative_N[0])
    i_B = torch.searchsorted(edges, draws.uniform(Purpose.TIME).double()).clamp(1, num_levels - 1)
    upper_B, lower_B = ratio_N[i_B].float(), ratio_N[i_B - 1].float()
    t_B, s_B = (process.t_from_sigma_ratio(r).clamp(0.0, 1.0) for r in (upper_B, lower_B))
    return t_B, s_B, 1.0 / (upper_B - lower_B)


def both_ends(
    spec: StudentSpec,
    student: nn.Module,
    target: nn.Module,
    states: tuple[Tensor, Tensor],
    times: tuple[Tensor, Tensor],
    conditions: Conditions,
) -> tuple[Tensor, Tensor]:
    """The student's x0 at (x_t, t), and the target network's x0 at (x_s, s) without gradient.

    Args:
        states: x_t and x_s, (B, C, H, W).
        times: t and s, (B,).
    """
    (x_t, x_s), (t_B, s_B) = states, times
    with torch.no_grad():
        wanted = Predictor.of(spec, target).x0(x_s, s_B, conditions)
    return Predictor.of(spec, student).x0(x_t, t_B, conditions), wanted


def growing_exponent(first: int, last: int, progress: float) -> int:
    """k of `ect_pair` at `progress` in [0, 1): every integer from first to last, equally long."""
    return first + int(progress * (last - first + 1))
