"""A solver made for one teacher: weights of its own for every step, fitted to the teacher's trajectories.

Shaul et al. 2024 (Bespoke Non-Stationary Solvers, arXiv 2403.01329) let every step of a solver have its own time and its own
weights of all that was computed before, and learn them by gradient on the error at the end; Frankel et al. 2025 (S4S, arXiv
2502.17423) alternate between weights and times. Here every step's weights are a least squares problem of a few unknowns, solved
in order from the states that the steps before really reach, and times are moved on a grid while the end comes nearer.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from distill_rt.training.plans import late_times
from distill_rt.training.progress import Progress
from distill_rt.training.trajectories import Trajectories

HISTORY = 3
"""Earlier predictions that a row of a step table can weigh."""
FIRST_TIMES, POWERS = (1.0, 0.9, 0.75, 0.6, 0.45), (1.0, 1.5, 2.0, 3.0)
"""Of the schedules ``first (1 - i / n)^power``; a search begins with the best of them. From uniform times alone it may end far
away: two steps on grid25 have an error of 0.125 from there, of 0.05 from here (by hand)."""
FIRST_MOVE = 4
"""Intervals by which a time moves at first; then half as many, down to one."""
RANK_TOLERANCE = 1e-6
"""Directions of a least squares problem with less than this share of the largest eigenvalue count as none. States and
predictions are nearly parallel, and weights that cancel (18 and -17 on grid25) would multiply what a network in bfloat16 or
int8 rounds."""

Weights = tuple[float, ...]
"""Of a step: of its state, its prediction of x0 and up to three predictions before it, newest first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FittedSolver:
    """Evaluations at `indices` of the grid, every step's weights, and what they compute.

    Args:
        error: root mean square over trajectories and elements of the last state's distance from the teacher's.
    """

    indices: tuple[int, ...]
    weights: tuple[Weights, ...]
    states: tuple[Tensor, ...]
    predictions: tuple[Tensor, ...]
    error: float


def fit_solver(trajectories: Trajectories, indices: Sequence[int], *, like: FittedSolver | None = None) -> FittedSolver:
    """Weights for evaluations at these times.

    Step i takes the weights that bring ``w_0 x + w_1 x0 + w_2 x0_1 + ...`` nearest to the teacher's states at the next time,
    the last one to its images. A solver that starts below time 1 is fed the noise that belongs to its own first time.

    Args:
        indices: of the trajectories' times, rising, without the last.
        like: another fit to the same trajectories, whose evaluations are used as far as its times are the same.
    """
    indices = tuple(indices)
    known = () if like is None else like.predictions[: _common(indices, like.indices)]
    init_scale = trajectories.teacher.process.init_scale
    x = trajectories.states[0] * (init_scale(trajectories.times[indices[0]]) / init_scale(trajectories.times[0]))
    states: list[Tensor] = [x]
    predictions: list[Tensor] = []
    weights: list[Weights] = []
    for i, index in enumerate(indices):
        predictions.append(known[i] if i < len(known) else trajectories.x0(states[i], index))
        target = trajectories.states[indices[i + 1] if i + 1 < len(indices) else -1]
        features = [states[i], *reversed(predictions[max(0, i - HISTORY) :])]
        weights.append(_least_squares(features, target))
        states.append(sum((w * f for w, f in zip(weights[i], features, strict=True)), torch.zeros_like(x)))
    error = float((states[-1] - trajectories.states[-1]).double().square().mean().sqrt())
    return FittedSolver(
        indices=indices, weights=tuple(weights), states=tuple(states), predictions=tuple(predictions), error=error
    )


def search_solver(trajectories: Trajectories, num_steps: int, progress: Progress | None = None) -> FittedSolver:
    """The best of some common schedules, then moved one time after the other as long as that lowers the error at the end.

    The first time is free as well: at 1 a teacher answers the mean of its data whatever the noise, a wasted evaluation, and a
    fitted step corrects for noise that is read at a lower time.
    """
    starts = [_nearest(trajectories.times, late_times(num_steps, p, start=t)) for t in FIRST_TIMES for p in POWERS]
    best = start = fit_solver(trajectories, starts[0])
    for indices in starts[1:]:  # neighbours share their first time, and so their first evaluation
        start = fit_solver(trajectories, indices, like=start)
        best = min(best, start, key=_error)
    last = len(trajectories.times) - 1
    move = FIRST_MOVE
    while move >= 1:
        before = best
        for i, step in itertools.product(range(num_steps), (move, -move)):
            moved = [*best.indices]
            moved[i] += step
            if moved[0] >= 0 and all(j < k for j, k in itertools.pairwise([*moved, last])):
                best = min(best, fit_solver(trajectories, moved, like=best), key=_error)
        if best is before:
            move //= 2
        if progress is not None:
            progress("solver, error at the end", 0, 0, best.error)
    return best


def _error(solver: FittedSolver) -> float:
    return solver.error


def _nearest(grid: Sequence[float], times: Sequence[float]) -> list[int]:
    """Of the falling grid without its last point, rising: what would fall together moves on, at the end back."""
    indices: list[int] = []
    for left, t in zip(range(len(times) - 1, -1, -1), times, strict=True):
        nearest = min(range(len(grid)), key=lambda i: abs(grid[i] - t))
        indices.append(min(max(nearest, indices[-1] + 1 if indices else 0), len(grid) - 2 - left))
    return indices


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Leading entries that are equal."""
    return len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False))))


def _least_squares(features: Sequence[Tensor], target: Tensor) -> Weights:
    """By the normal equations in float64, which are as large as the number of features."""
    columns = torch.stack([f.flatten().double() for f in features])
    gram, moment = columns @ columns.T, columns @ target.flatten().double()
    inverse = torch.linalg.pinv(gram.cpu(), rtol=RANK_TOLERANCE, hermitian=True)
    return tuple((inverse @ moment.cpu()).tolist())
