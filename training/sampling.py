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


def sample(
    spec: StudentSpec,
    networks: Sequence[nn.Module],
    seeds: Sequence[int] | NDArray[np.uint64],
    *,
    table: StepTable,
    labels: Sequence[int] | None = None,
    guidance: float | Tensor | None = None,
    batch_size: int = 500,
) -> Tensor:
    """Run a table, shape (N, C, H, W) float32, on the processor; the networks may be elsewhere, all in one place.

    Args:
        seeds: one per image.
        table: any sampler for this student's process and parameterization (a plan of its contract, or a baseline).
        labels: one per image, for students that take labels.
        guidance: w of all images, or one per image (N,), for guided students; None is the contract's default.
    """
    seeds = np.asarray(seeds, np.uint64)
    w_N = torch.as_tensor(spec.guidance.default if guidance is None else guidance).expand(len(seeds))
    parts = []
    for start in range(0, len(seeds), batch_size):
        chosen = seeds[start : start + batch_size]
        label_B = (
            None if labels is None else torch.as_tensor(list(labels[start : start + batch_size]), dtype=torch.int64)
        )
        w_B = None if spec.guidance.mode == "none" else w_N[start : start + batch_size].clone()
        conditions = Conditions(label_B=label_B, w_B=w_B)
        parts.append(_sample_batch(spec, networks, chosen, table, conditions))
    return torch.cat(parts)


@torch.no_grad()
def _sample_batch(
    spec: StudentSpec,
    networks: Sequence[nn.Module],
    seeds: NDArray[np.uint64],
    table: StepTable,
    conditions: Conditions,
) -> Tensor:
    device = device_of(networks[0])
    conditions = conditions.to(device)

    def network(net_id: int, x: NDArray[np.float32], time: float, second_time: float | None) -> NDArray[np.float32]:
        x_BCHW = torch.from_numpy(x).to(device)
        times = [x_BCHW.new_full((len(x),), value) for value in (time, second_time) if value is not None]
        # Samples are float32, also those that are made while a network trains in bfloat16.
        with torch.autocast(device.type, enabled=False):
            return raw_output(spec, networks[net_id], x_BCHW, times, conditions).cpu().numpy()

    z = unit_noise(seeds, spec.sample_shape)
    x = run_table(table, z, network, lambda stream: unit_noise(seeds, spec.sample_shape, stream), dtype=np.float32)
    return torch.from_numpy(x)


def raw_output(
    spec: StudentSpec, network: nn.Module, x_BCHW: Tensor, times: list[Tensor], conditions: Conditions
) -> Tensor:
    """The network's raw output under the contract's guidance mode; after guidance by two evaluations, on the processor."""
    label_B, w_B = conditions.label_B, conditions.w_B
    labels = [] if label_B is None else [label_B]
    if spec.guidance.mode == "embedded":
        assert w_B is not None
        embedded: Tensor = network(x_BCHW, *times, *labels, w_B)
        return embedded
    if spec.guidance.mode == "none" or label_B is None or w_B is None:
        plain: Tensor = network(x_BCHW, *times, *labels)
        return plain
    assert spec.condition.null_label is not None
    both_labels = torch.cat([torch.full_like(label_B, spec.condition.null_label), label_B])
    both = network(torch.cat([x_BCHW, x_BCHW]), *[torch.cat([time, time]) for time in times], both_labels)
    F_u, F_c = (half.cpu().numpy() for half in both.chunk(2))
    return torch.from_numpy(combine_guidance(F_u, F_c, w_B.cpu().numpy(), rescale=spec.guidance.rescale))
