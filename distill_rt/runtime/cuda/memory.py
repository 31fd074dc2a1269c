"""What an engine will need on the GPU, from its directory alone: no GPU and none of its libraries are asked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill_rt.backends.base import component_batch
from distill_rt.backends.cuda.arena import planned_bytes
from distill_rt.core.artifacts import EngineBody
from distill_rt.runtime.cuda.step_request import request_buffers
from distill_rt.runtime.cuda.trajectory_request import trajectory_buffers


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryPlan:
    """Bytes on the GPU with every batch loaded.

    Args:
        weights: of all components, once for all workers.
        buffers: states, inputs, outputs and pixels of one worker.
        activations: what the networks need while they run, one worker; an upper bound from the graphs' shapes.
    """

    weights: int
    buffers: int
    activations: int

    def total(self, workers: int = 1) -> int:
        """For a number of workers."""
        return self.weights + workers * (self.buffers + self.activations)


def plan_memory(directory: Path, body: EngineBody) -> MemoryPlan:
    """The plan of a GPU engine."""
    files = {item.files[0] for items in body.components.values() for item in items}
    estimates = body.options.get("activation_bytes", {})
    buffers = activations = 0
    for batch in body.batches:
        own = request_buffers(body.spec, batch) if body.mode == "step" else trajectory_buffers(batch)
        buffers += planned_bytes(own)
        for name, (inputs, outputs) in body.parts.items():
            rows = component_batch(body.spec, name, batch)
            tensors = {tensor.name: (tensor.concrete(rows), tensor.dtype) for tensor in (*inputs, *outputs)}
            buffers += planned_bytes(tensors)
            activations += int(estimates.get(name, {}).get(str(batch), 0))
    return MemoryPlan(
        weights=sum((directory / file).stat().st_size for file in files), buffers=buffers, activations=activations
    )
