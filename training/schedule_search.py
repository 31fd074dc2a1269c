"""Where a teacher's few steps should stand: the cheapest path through a grid of times, measured on its own trajectories.

Chen et al. 2024 (GITS, arXiv 2405.11326): teachers' trajectories have one shape, so a few of them tell what a long
step costs between any two times of a grid, and dynamic programming finds the best times for every number of steps.

Legend: G intervals of the grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from distill_rt.training.trajectories import Trajectories


def jump_costs(trajectories: Trajectories, *, power: float = 1.0) -> Tensor:
    """Mean error of one DDIM jump from every time to every later one, against the teacher's own point there.

    Errors are root mean squares over an image's elements in units of ``sqrt(alpha^2 + sigma^2)``: there data of unit variance
    have equal spread at all times, so that what is left of an error at the end hardly depends on when it was made. (Where alpha
    is 1, as in the paper, errors at high noise shrink on their way.)

    Args:
        power: of every image's error; 2 adds squares, as for errors without correlation.

    Returns:
        (G + 1, G + 1): entry (j, k) for times[j] > times[k], infinity elsewhere.
    """
    teacher, states = trajectories.teacher, trajectories.states
    times_GB = [states[0].new_full((len(states[0]),), t) for t in trajectories.times]
    costs = torch.full((len(states), len(states)), math.inf, dtype=torch.float64)
    for j, x0 in enumerate(trajectories.predictions):
        for k in range(j + 1, len(states)):
            error = teacher.step_with(states[j], x0, times_GB[j], times_GB[k]) - states[k]
            level = teacher.process.at(times_GB[k].double()[0])
            squared_B = error.double().square().flatten(1).mean(dim=1) / (level.alpha**2 + level.sigma**2)
            costs[j, k] = (squared_B ** (0.5 * power)).mean()
    return costs


def cheapest_path(costs: Tensor, num_steps: int, *, step_weight: float = 1.0) -> list[int]:
    """The points from the first to the last in `num_steps` jumps with the lowest ``sum_i step_weight^i * cost_i``.

    ``V_n(j) = min_k costs[j, k] + step_weight * V_(n-1)(k)``.

    Args:
        costs: (G + 1, G + 1), infinity where no jump is.
        num_steps: 1 to G.

    Returns:
        `num_steps` + 1 indices, from 0 to G.
    """
    assert 1 <= num_steps < len(costs)
    values, choices = costs[:, -1], []
    for _ in range(num_steps - 1):
        values, choice = (costs + step_weight * values).min(dim=1)
        choices.append(choice)
    path = [0]
    for choice in reversed(choices):
        path.append(int(choice[path[-1]]))
    return [*path, len(costs) - 1]
