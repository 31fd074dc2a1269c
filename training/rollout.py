"""The student's own samplers, run in training: the states that generation will bring."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from distill_rt.core.prediction import ddim_jump
from distill_rt.training.draws import Draws
from distill_rt.training.predictor import Conditions, Predictor


@torch.no_grad()
def renoised_states(
    predictor: Predictor,
    shape: tuple[int, ...],
    times: Sequence[float],
    row_B: Tensor,
    conditions: Conditions,
    draws: Draws,
) -> Tensor:
    """The state of each image at its own one of `times`, reached by re-noising from the first (`multistep_consistency`).

    Noise is that of the runtime's tables for the seeds of the draws: stream 0, then one stream a row.

    Args:
        row_B: index into `times`, (B,).

    Returns:
        (B, C, H, W).
    """
    process = predictor.process
    x = process.init_scale(times[0]) * draws.table_noise(shape)
    for row, (t, s) in enumerate(itertools.pairwise(times)):
        # Images that are there already leave. All processes must call a sharded network equally often: one image stays.
        going = torch.nonzero(row_B > row).flatten()
        moved = going if len(going) else going.new_zeros(1)
        x0 = predictor.x0(x[moved], x.new_full((len(moved),), t), conditions.at(moved))
        z = draws.table_noise(shape, row + 1)
        x[going] = process.add_noise(x0, z[moved], x.new_full((len(moved),), s))[: len(going)]
    return x


def spread_rows(num_rows: int, turn: int, draws: Draws) -> Tensor:
    """A row for each image, int64 (B,): all of them equally often in a batch, in turn where there are more rows than images."""
    place_B = torch.arange(draws.num_samples, device=draws.device) + draws.first_sample
    return (place_B + turn) % num_rows


@torch.no_grad()
def ddim_states(
    predictor: Predictor, shape: tuple[int, ...], times: Sequence[float], conditions: Conditions, draws: Draws
) -> Tensor:
    """The states at all of `times` on the deterministic way down from the first (`ddim`), (N, B, C, H, W)."""
    process = predictor.process
    states = [process.init_scale(times[0]) * draws.table_noise(shape)]
    for t, s in itertools.pairwise(times):
        x = states[-1]
        t_B, s_B = x.new_full((len(x),), t), x.new_full((len(x),), s)
        states.append(ddim_jump(x, predictor.x0(x, t_B, conditions), process.at(t_B), process.at(s_B)))
    return torch.stack(states)
