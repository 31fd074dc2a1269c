"""Variants of one trajectory on one target: how far their images are from the student's, and how long a call takes.

Times are taken in rounds that run every variant once, each round starting with another one, and compared as ratios within a
round: whatever else the machine does then meets all of them.

Legend: B images, M images of a measurement, H x W pixels, C channels, R rounds.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.base import Backend, CompileOptions, Program
from distill_rt.core.artifacts import Component
from distill_rt.core.noise import unit_noise
from distill_rt.core.spec import TRAJECTORY, StudentSpec, TensorSpec
from distill_rt.export.distance import typical_norm
from distill_rt.export.gate import evaluate_rows
from distill_rt.export.lossy.judge import Figures
from distill_rt.export.model_file import save_model
from distill_rt.export.precision import typed_graph
from distill_rt.export.rewrites import rewrite_graph

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]

MIN_ROUNDS, MAX_ROUNDS = 15, 300


@dataclass(frozen=True, kw_only=True, slots=True)
class Requests:
    """M requests of one image each: seeds with labels or tokens, at one guidance scale."""

    seeds: tuple[int, ...]
    guidance: float
    labels: tuple[int, ...] | None = None
    tokens: Array | None = None

    def first(self, num: int) -> Requests:
        """The first `num` of them."""
        labels = None if self.labels is None else self.labels[:num]
        tokens = None if self.tokens is None else self.tokens[:num]
        return Requests(seeds=self.seeds[:num], guidance=self.guidance, labels=labels, tokens=tokens)

    def feeds(self, spec: StudentSpec, steps: int) -> dict[str, Array]:
        """Inputs of the trajectory graph of a plan (`StudentSpec.trajectory`), M rows each."""
        ((inputs, _),) = spec.trajectory(steps).values()
        values: dict[str, Array] = {"guidance": np.full(len(self.seeds), self.guidance, np.float32)}
        if self.labels is not None:
            values["label"] = np.array(self.labels, np.int64)
        if self.tokens is not None:
            values["tokens"] = self.tokens
        streams = {"noise": 0} | {f"noise_{stream}": stream for stream in spec.plans[steps].streams}
        for name, stream in streams.items():
            values[name] = unit_noise(self.seeds, spec.sample_shape, stream)
        return {tensor.name: values[tensor.name] for tensor in inputs}


@dataclass(slots=True)
class Machine:
    """A backend with its options, and a directory for what it compiles.

    Args:
        batch: images per call.
    """

    backend: Backend
    options: CompileOptions
    batch: int
    directory: Path
    target: str = ""
    _count: int = field(default=0)

    def program(self, model: ir.Model, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> Program:
        """Compile and load a graph.

        Raises:
            TargetError: the compiler refuses it.
        """
        stem = f"variant{self._count}"
        self._count += 1
        source = self.directory / f"{stem}.onnx"
        save_model(model, source)
        component = Component(
            file=source.name,
            inputs=tuple(inputs),
            outputs=tuple(outputs),
            opset=model.opset_imports[""],
            initializers={},
        )
        graph = rewrite_graph(
            source, self.backend.rewrites, self.directory / f"{stem}.rewritten.onnx", target=self.target
        )
        if self.backend.typed_graphs:
            typed = self.directory / f"{stem}.typed.onnx"
            graph = typed_graph(graph, component, self.options.precision, typed)
        files = self.backend.compile(graph, component, [self.batch], self.directory, stem, self.options)
        return self.backend.load(self.directory, files, inputs, outputs, self.batch, self.options)

    def trajectory(self, model: ir.Model, spec: StudentSpec, steps: int, *, pixels: bool = True) -> Program:
        """The program of a trajectory graph, see `distill_rt.export.trajectory_graph.trajectory_model`."""
        inputs, outputs = spec.trajectory(steps)[TRAJECTORY]
        if not pixels:
            shape = ("B", *spec.image_shape)
            outputs = (TensorSpec(name=outputs[0].name, dtype="float32", shape=shape),)
        return self.program(model, inputs, outputs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Variant:
    """One way to make the images.

    Args:
        program: of a trajectory graph that ends in pixels.
        feeds: its inputs for the M requests.
    """

    name: str
    program: Program
    feeds: Mapping[str, Array]


def images_of(program: Program, feeds: Mapping[str, Array]) -> Array:
    """float32 (M, C, H, W) on [-1, 1] of a program that ends in pixels or in float images."""
    images = evaluate_rows(program, feeds)
    if images.dtype != np.uint8:
        return np.clip(images, -1, 1)
    return (images.transpose(0, 3, 1, 2) / np.float32(127.5) - 1).astype(np.float32)


def distances(got_BCHW: Array, want_BCHW: Array) -> Array:
    """Relative L2 per image; the norm is the typical one of `want_BCHW`."""
    difference = (got_BCHW - want_BCHW).astype(np.float64).reshape(len(got_BCHW), -1)
    result: Array = np.linalg.norm(difference, axis=1) / typical_norm(want_BCHW)
    return result


def measure(variants: Sequence[Variant], want_BCHW: Array, *, seconds: float) -> list[Figures]:
    """Distance and time of every variant; ratios are to the first one.

    Args:
        want_BCHW: the full plan's images in float32, on [-1, 1].
        seconds: about how long to take times.
    """
    distance = [distances(images_of(variant.program, variant.feeds), want_BCHW) for variant in variants]
    times_RV = _rounds([variant.program for variant in variants], seconds)
    ratios_RV = times_RV / times_RV[:, :1]
    return [
        Figures(
            name=variant.name,
            time_ratio=float(np.median(ratios_RV[:, i])),
            time_low=low,
            time_high=high,
            milliseconds=1e3 * float(np.median(times_RV[:, i])),
            distance_B=distance[i],
        )
        for i, variant in enumerate(variants)
        for low, high in [median_interval(ratios_RV[:, i])]
    ]


def median_interval(values: Array) -> tuple[float, float]:
    """95 % interval of the median from order statistics: no assumption on how times are spread."""
    ordered, num = np.sort(values), len(values)
    reach = 1.96 * np.sqrt(num) / 2
    low, high = int(np.floor(num / 2 - reach)), int(np.ceil(num / 2 + reach))
    return float(ordered[max(low, 0)]), float(ordered[min(high, num - 1)])


def _rounds(programs: Sequence[Program], seconds: float) -> Array:
    """Seconds of every program (columns) in every round."""
    for program in programs:
        program.run()
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < MIN_ROUNDS or (time.perf_counter() - start < seconds and len(rounds) < MAX_ROUNDS):
        row = [0.0] * len(programs)
        for i in range(len(programs)):
            which = (i + len(rounds)) % len(programs)
            before = time.perf_counter()
            programs[which].run()
            row[which] = time.perf_counter() - before
        rounds.append(row)
    return np.array(rounds)
