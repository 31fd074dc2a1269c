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
def renoised_state(
    predictor: Predictor, shape: tuple[int, ...], times: Sequence[float], conditions: Conditions, draws: Draws
) -> Tensor:
    """The state at the last of `times`, reached by re-noising from the first (`multistep_consistency`), (B, C, H, W).

    Noise is that of the runtime's tables for the seeds of the draws: stream 0, then one stream a row.
    """
    process = predictor.process
    x = process.init_scale(times[0]) * draws.table_noise(shape)
    for row, (t, s) in enumerate(itertools.pairwise(times)):
        x0 = predictor.x0(x, x.new_full((len(x),), t), conditions)
        z = draws.table_noise(shape, row + 1)
        x = process.add_noise(x0, z, x.new_full((len(x),), s))
    return x


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
