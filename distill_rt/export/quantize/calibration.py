"""What a network meets when its student generates: the inputs that scales of 8-bit graphs are measured on.

The student's own trajectories, so every row has a state that belongs to its time: noise at late times, which a random input
would be, is nothing that a few-step student ever sees. All plans, the lowest, default and highest guidance scale, labels or
prompts in turn. The seeds are others than those of the golden outputs: the gate judges what the scales were not fitted to.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.errors import ArtifactError
from distill_rt.core.noise import INITIAL_STREAM, unit_noise
from distill_rt.core.optional import require
from distill_rt.core.spec import DECODER, TRAJECTORY, StudentSpec
from distill_rt.core.tokenizer import Tokenizer
from distill_rt.export.bundle import Bundle
from distill_rt.export.progress import Progress, silent
from distill_rt.export.trajectory import run_components

Array = NDArray[Any]

FIRST_SEED = 40_000
NUM_TRAJECTORIES = 16
"""Rows of a trajectory graph, which meets all its steps in each."""
NUM_ROWS = 64
"""Rows per network, spread evenly over all calls of all plans. Of a trained digits student, 16 to 128 rows give int8 images at
the same distance."""
PROMPTS = (
    "a portrait of an old fisherman, natural light",
    "a red sports car on a coastal road at sunset",
    "",
    "a bowl of ramen on a wooden table, studio photography",
    "an astronaut riding a horse on the moon, highly detailed, digital art",
    "a watercolor painting of a village in the mountains",
    "two children playing football in the rain",
    "a close-up of a green leaf with drops of water",
    "the interior of a modern library, wide angle",
    "a black and white photograph of a crowded street in the 1930s",
    "a cat",
    "an abstract pattern of blue and yellow triangles, vector art",
    "a castle on a hill in thick fog, fantasy concept art",
    "a plate with the words hello world written on it",
    "a golden retriever puppy sleeping in a basket, soft light, 35mm",
    "an isometric drawing of a small coffee shop",
)
"""What a student with text is asked for: portraits, things, scenes, styles, letters, one word, nothing."""


def calibration_inputs(bundle: Bundle, progress: Progress = silent) -> dict[str, dict[str, Array]]:
    """Inputs of every network and of the decoder of a bundle, met on its own trajectories in float32.

    Returns:
        Component (``network0``, ``decoder``) -> input name -> M rows, M at most `NUM_ROWS`.

    Raises:
        TargetError: ONNX Runtime is not installed.
        ArtifactError: the student's own numbers are NaN or infinite.
    """
    spec = bundle.body.spec
    sessions = {name: _session(bundle.directory / component.file) for name, component in bundle.body.components.items()}
    met: dict[str, list[dict[str, Array]]] = {
        name: [] for name in sessions if name.startswith("network") or name == DECODER
    }

    def evaluate(name: str, inputs: Mapping[str, Array]) -> Array:
        if name in met:
            met[name].append(dict(inputs))
        num_rows = len(next(iter(inputs.values())))
        if name == DECODER:  # nobody looks at these images
            return np.zeros((num_rows, *spec.image_shape), np.float32)
        # Row by row: a batch of large latents would need as much memory as all rows together.
        rows = [
            sessions[name].run(None, {key: value[i : i + 1] for key, value in inputs.items()})[0]
            for i in range(num_rows)
        ]
        return np.concatenate(rows)

    tokens = None
    if bundle.body.tokenizer is not None:
        tokens = Tokenizer(bundle.directory / bundle.body.tokenizer, spec.condition)(PROMPTS).ids
    scales = sorted({spec.guidance.min, spec.guidance.default, spec.guidance.max})
    per_scale = _images_per_scale(spec, len(scales))
    first = 0
    for done, steps in enumerate(spec.steps):
        progress("calibration inputs", done, len(spec.steps))
        indices = first + np.arange(per_scale * len(scales))
        run_components(
            spec,
            evaluate,
            steps=steps,
            guidance=np.repeat(np.asarray(scales, np.float32), per_scale),
            seeds=[FIRST_SEED + int(i) for i in indices],
            labels=_labels(spec, indices),
            tokens=None if tokens is None else tokens[indices % len(tokens)],
        )
        first += len(indices)
    progress("calibration inputs", len(spec.steps), len(spec.steps))
    return {name: _spread(name, calls) for name, calls in met.items()}


def trajectory_rows(bundle: Bundle, progress: Progress = silent) -> dict[str, dict[str, Array]]:
    """Inputs of a trajectory graph: noise and conditions; the states in between are the graph's own.

    Returns:
        ``trajectory`` -> input name -> `NUM_TRAJECTORIES` rows.
    """
    spec, steps = bundle.body.spec, bundle.body.steps
    assert steps is not None
    indices = np.arange(NUM_TRAJECTORIES)
    scales = sorted({spec.guidance.min, spec.guidance.default, spec.guidance.max})
    seeds = [FIRST_SEED + int(i) for i in indices]
    values: dict[str, Array] = {"guidance": np.asarray([scales[i % len(scales)] for i in indices], np.float32)}
    labels = _labels(spec, indices)
    if labels is not None:
        values["label"] = np.asarray(labels, np.int64)
    if bundle.body.tokenizer is not None:
        tokens = Tokenizer(bundle.directory / bundle.body.tokenizer, spec.condition)(PROMPTS).ids
        values["tokens"] = tokens[indices % len(tokens)]
    streams = {"noise": INITIAL_STREAM} | {f"noise_{stream}": stream for stream in spec.plans[steps].streams}
    for name, stream in streams.items():
        values[name] = unit_noise(seeds, spec.sample_shape, stream)
    ((inputs, _),) = spec.trajectory(steps).values()
    return {TRAJECTORY: {tensor.name: values[tensor.name] for tensor in inputs}}


def calibration_digest(inputs: Mapping[str, Array]) -> str:
    """sha256 over names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(inputs):
        value = np.ascontiguousarray(inputs[name])
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()


def _session(path: Path) -> Any:
    runtime = require("onnxruntime", extra="onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    return runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _images_per_scale(spec: StudentSpec, num_scales: int) -> int:
    """So many that even the network with the fewest calls gets `NUM_ROWS`, but at most 16 and at least 2."""
    calls = [
        sum(row.net_id == i for table in spec.plans.values() for row in table.rows) for i in range(len(spec.networks))
    ]
    return int(np.clip(-(-NUM_ROWS // (min(calls) * num_scales)), 2, 16))


def _labels(spec: StudentSpec, indices: Array) -> list[int] | None:
    if spec.condition.kind != "label":
        return None
    return [int(i) % spec.condition.num_classes for i in indices]


def _spread(name: str, calls: list[dict[str, Array]]) -> dict[str, Array]:
    whole = {key: np.concatenate([call[key] for call in calls]) for key in calls[0]}
    num_rows = len(next(iter(whole.values())))
    picks = np.unique(np.linspace(0, num_rows - 1, min(NUM_ROWS, num_rows)).round().astype(int))
    rows = {key: value[picks] for key, value in whole.items()}
    for key, value in rows.items():
        if not np.isfinite(value).all():
            raise ArtifactError(
                f"the student's own trajectories give {name} an input {key} that is NaN or infinite",
                code="student-not-finite",
                hint="its weights are finite but overflow: train again, or narrow its contract",
            )
    return rows
