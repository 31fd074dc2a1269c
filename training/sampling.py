"""Samples from a student in torch, through the same step tables and the same noise as the compiled runtime.

`run_table` moves the state; torch only evaluates the network. This is what training-time evaluation, golden outputs and the
quality protocol use, so what is measured is what will be shipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill_rt.core.guidance import combine_guidance
from distill_rt.core.spec import StudentSpec
from distill_rt.core.table import StepTable, run_table
from distill_rt.kernels import unit_noise
from distill_rt.training.device import device_of
from distill_rt.training.predictor import Conditions
from distill_rt.training.text import Prompts


def sample(
    spec: StudentSpec,
    networks: Sequence[nn.Module],
    seeds: Sequence[int] | NDArray[np.uint64],
    *,
    table: StepTable,
    labels: Sequence[int] | None = None,
    prompts: Prompts | None = None,
    guidance: float | Tensor | None = None,
    batch_size: int = 500,
) -> Tensor:
    """Run a table, shape (N, C, H, W) float32, on the processor; the networks may be elsewhere, all in one place.

    Args:
        seeds: one per image.
        table: any sampler for this student's process and parameterization (a plan of its contract, or a baseline).
        labels, prompts: one per image, for students that take labels or prompts.
        guidance: w of all images, or one per image (N,), for guided students; None is the contract's default.
    """
    seeds = np.asarray(seeds, np.uint64)
    w_N = torch.as_tensor(spec.guidance.default if guidance is None else guidance).expand(len(seeds))
    null_text_LD = None if prompts is None else prompts.side.null_LD
    parts = []
    for start in range(0, len(seeds), batch_size):
        part = slice(start, start + batch_size)
        conditions = Conditions(
            label_B=None if labels is None else torch.as_tensor(list(labels[part]), dtype=torch.int64),
            text_BLD=None if prompts is None else prompts.embedded(part),
            w_B=None if spec.guidance.mode == "none" else w_N[part].clone(),
        )
        parts.append(sample_batch(spec, networks, seeds[part], table, conditions, null_text_LD))
    return torch.cat(parts)


@torch.no_grad()
def sample_batch(
    spec: StudentSpec,
    networks: Sequence[nn.Module],
    seeds: NDArray[np.uint64],
    table: StepTable,
    conditions: Conditions,
    null_text_LD: Tensor | None = None,
) -> Tensor:
    """`sample` of one batch, from conditions as a network takes them.

    Args:
        null_text_LD: embedding of the empty prompt, for guidance by two evaluations with prompts.
    """
    device = device_of(networks[0])
    conditions = conditions.to(device)
    null_text_LD = None if null_text_LD is None else null_text_LD.to(device)

    def network(net_id: int, x: NDArray[np.float32], time: float, second_time: float | None) -> NDArray[np.float32]:
        x_BCHW = torch.from_numpy(x).to(device)
        times = [x_BCHW.new_full((len(x),), value) for value in (time, second_time) if value is not None]
        # Samples are float32, also those that are made while a network trains in bfloat16.
        with torch.autocast(device.type, enabled=False):
            return raw_output(spec, networks[net_id], x_BCHW, times, conditions, null_text_LD).cpu().numpy()

    z = unit_noise(seeds, spec.sample_shape)
    x = run_table(table, z, network, lambda stream: unit_noise(seeds, spec.sample_shape, stream), dtype=np.float32)
    return torch.from_numpy(x)


def raw_output(
    spec: StudentSpec,
    network: nn.Module,
    x_BCHW: Tensor,
    times: list[Tensor],
    conditions: Conditions,
    null_text_LD: Tensor | None = None,
) -> Tensor:
    """The network's raw output under the contract's guidance mode; after guidance by two evaluations, on the processor.

    Args:
        null_text_LD: embedding of the empty prompt, for guidance by two evaluations with prompts.
    """
    w_B = conditions.w_B
    asked = _inputs(conditions)
    if spec.guidance.mode == "embedded":
        assert w_B is not None
        embedded: Tensor = network(x_BCHW, *times, *asked, w_B)
        return embedded
    if spec.guidance.mode == "none" or not asked or w_B is None:
        plain: Tensor = network(x_BCHW, *times, *asked)
        return plain
    twice = _inputs(conditions.without_and_with(spec.condition.null_label, null_text_LD))
    both = network(torch.cat([x_BCHW, x_BCHW]), *[torch.cat([time, time]) for time in times], *twice)
    F_u, F_c = (half.cpu().numpy() for half in both.chunk(2))
    return torch.from_numpy(combine_guidance(F_u, F_c, w_B.cpu().numpy(), rescale=spec.guidance.rescale))


def _inputs(conditions: Conditions) -> list[Tensor]:
    """What the network is told to show, in the order of its inputs."""
    return [value for value in (conditions.label_B, conditions.text_BLD) if value is not None]
