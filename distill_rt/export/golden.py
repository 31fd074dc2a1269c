"""Golden inputs and outputs: what the student answers in float32, stored in the bundle as `golden.safetensors`.

Two kinds. Per component: inputs met on real trajectories, with the raw output for each. Per plan and guidance scale: seeds,
labels or tokens with the finished images; the noise is not stored, it follows from the seeds (design section 6).

Tensor names: ``<component>/input/<name>``, ``<component>/output/<name>`` with M rows, and
``trajectory/steps=S,guidance=W/{steps,guidance,seeds,labels,tokens,images}``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.directory import write_file
from distill_rt.core.errors import ArtifactError
from distill_rt.core.optional import require
from distill_rt.core.spec import StudentSpec
from distill_rt.export.progress import Progress, silent
from distill_rt.export.trajectory import EvaluateComponent, run_components

Array = NDArray[Any]

GOLDEN_FILE = "golden.safetensors"
NUM_IMAGES = 2
"""Images per trajectory: teachers have plans of 64 steps, and every plan meets every guidance scale."""
MAX_ROWS = 16
"""Rows per component, spread evenly over all calls of all trajectories."""
FIRST_SEED = 20_000
PROMPTS = (
    "a photograph of a red bicycle leaning against a white wall",
    "",
    "two cats asleep on a wooden table at night, oil painting, warm light",
    "a map of an island",
)
"""What a student with text is asked for: a plain prompt, none, a list of wishes, a short one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ComponentGolden:
    """Inputs and outputs of one component by tensor name, M rows each."""

    inputs: dict[str, Array]
    outputs: dict[str, Array]

    @property
    def num_rows(self) -> int:
        return len(next(iter(self.outputs.values())))


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryGolden:
    """Finished images of one plan at one guidance scale: float32 (B, C, H, W)."""

    steps: int
    guidance: float
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    tokens: Array | None = None
    images: Array

    @property
    def name(self) -> str:
        return f"steps={self.steps},guidance={self.guidance:g}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Golden:
    """Everything that the gate compares with."""

    components: dict[str, ComponentGolden]
    trajectories: tuple[TrajectoryGolden, ...]


def make_golden(
    spec: StudentSpec,
    evaluate: EvaluateComponent,
    progress: Progress = silent,
    *,
    tokens: Array | None = None,
    plans: Sequence[int] | None = None,
) -> Golden:
    """Run every plan at the lowest, default and highest guidance scale, and keep what is met on the way.

    Args:
        evaluate: the student's components in float32.
        tokens: int64 (P, L) of prompts (`PROMPTS`) that the trajectories take in turn; None for a student without text.
        plans: of the contract; None is all of them.

    Raises:
        ArtifactError: the student's own answer is NaN or infinite.
    """
    calls: dict[str, list[tuple[dict[str, Array], Array]]] = {name: [] for name in spec.components()}

    def recording(name: str, inputs: Mapping[str, Array]) -> Array:
        output = evaluate(name, inputs)
        calls[name].append((dict(inputs), output))
        return output

    scales = sorted({spec.guidance.min, spec.guidance.default, spec.guidance.max})
    seeds = tuple(FIRST_SEED + i for i in range(NUM_IMAGES))
    trajectories: list[TrajectoryGolden] = []
    plans = spec.steps if plans is None else plans
    for done, steps in enumerate(plans):
        progress("golden outputs", done, len(plans))
        # All scales of a plan in one batch: long plans of teachers take seconds.
        first, num = len(trajectories) * NUM_IMAGES, len(scales) * NUM_IMAGES
        labels = _labels(spec, first, num)
        prompts = None if tokens is None else tokens[(first + np.arange(num)) % len(tokens)]
        images = run_components(
            spec,
            recording,
            steps=steps,
            guidance=np.repeat(np.asarray(scales, np.float32), NUM_IMAGES),
            seeds=seeds * len(scales),
            labels=labels,
            tokens=prompts,
        )
        if not np.isfinite(images).all():
            raise ArtifactError(
                f"the student's own images are NaN or infinite at steps={steps}",
                code="student-not-finite",
                hint="its weights are finite but overflow: train again, or narrow its contract",
            )
        for i, w in enumerate(scales):
            part = slice(i * NUM_IMAGES, (i + 1) * NUM_IMAGES)
            trajectories.append(
                TrajectoryGolden(
                    steps=steps,
                    guidance=w,
                    seeds=seeds,
                    labels=None if labels is None else labels[part],
                    tokens=None if prompts is None else prompts[part],
                    images=images[part],
                )
            )
    progress("golden outputs", len(plans), len(plans))
    return Golden(
        # A plan need not call every network.
        components={name: _select_rows(spec, name, met) for name, met in calls.items() if met},
        trajectories=tuple(trajectories),
    )


def _labels(spec: StudentSpec, first: int, num: int) -> tuple[int, ...] | None:
    """Different labels for every trajectory, so that all are met where there are few."""
    if spec.condition.kind != "label":
        return None
    return tuple((first + i) % spec.condition.num_classes for i in range(num))


def _select_rows(spec: StudentSpec, component: str, calls: list[tuple[dict[str, Array], Array]]) -> ComponentGolden:
    assert calls, "onnx_export refuses a contract with a network that no plan uses"
    tensors, outputs = spec.components()[component]
    inputs = {tensor.name: np.concatenate([row[tensor.name] for row, _ in calls]) for tensor in tensors}
    output = np.concatenate([row for _, row in calls])
    picks = np.unique(np.linspace(0, len(output) - 1, min(MAX_ROWS, len(output))).round().astype(int))
    (name,) = (tensor.name for tensor in outputs)
    return ComponentGolden(inputs={key: value[picks] for key, value in inputs.items()}, outputs={name: output[picks]})


def save_golden(path: Path, golden: Golden) -> None:
    """Write `golden.safetensors`."""
    safetensors = require("safetensors.numpy", extra="cpu")
    tensors: dict[str, Array] = {}
    for name, component in golden.components.items():
        tensors |= {f"{name}/input/{key}": value for key, value in component.inputs.items()}
        tensors |= {f"{name}/output/{key}": value for key, value in component.outputs.items()}
    for run in golden.trajectories:
        values = {
            "steps": np.array(run.steps, np.int64),
            "guidance": np.array(run.guidance, np.float64),
            "seeds": np.array(run.seeds, np.int64),
            "images": run.images,
        }
        if run.tokens is not None:
            values["tokens"] = run.tokens
        if run.labels is not None:
            values["labels"] = np.array(run.labels, np.int64)
        tensors |= {f"trajectory/{run.name}/{key}": value for key, value in values.items()}
    write_file(path, safetensors.save({key: np.ascontiguousarray(value) for key, value in tensors.items()}))


def load_golden(path: Path) -> Golden:
    """Read `golden.safetensors`.

    Raises:
        ArtifactError: not a golden file.
    """
    safetensors = require("safetensors.numpy", extra="cpu")
    try:
        return _parse(safetensors.load_file(path))
    except Exception as error:  # the format's own error is not a ValueError, a missing tensor is a KeyError
        raise ArtifactError(
            f"{path} does not hold golden outputs: {error}",
            code="artifact-damaged",
            hint="export it again: distill-rt export STUDENT --out BUNDLE --force",
        ) from error


def _parse(tensors: dict[str, Array]) -> Golden:
    groups: dict[str, dict[str, Array]] = {}
    for name, value in tensors.items():
        group, _, key = name.rpartition("/")
        groups.setdefault(group, {})[key] = value
    components = {
        group.removesuffix("/output"): ComponentGolden(
            inputs=groups[group.removesuffix("/output") + "/input"], outputs=outputs
        )
        for group, outputs in groups.items()
        if group.endswith("/output")
    }
    trajectories = [
        TrajectoryGolden(
            steps=int(values["steps"].item()),
            guidance=float(values["guidance"].item()),
            seeds=tuple(int(seed) for seed in values["seeds"]),
            labels=tuple(int(label) for label in values["labels"]) if "labels" in values else None,
            tokens=values.get("tokens"),
            images=values["images"],
        )
        for group, values in groups.items()
        if group.startswith("trajectory/")
    ]
    if not trajectories:
        raise ValueError("it has no trajectories")
    return Golden(
        components=components, trajectories=tuple(sorted(trajectories, key=lambda run: (run.steps, run.guidance)))
    )
