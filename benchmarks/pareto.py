"""``make pareto``: smaller students on digits, quality against latency, beside the honest alternative: fewer steps.

    python benchmarks/pareto.py --out benchmarks/results/pareto.json
    SEEDS=0 ONLY=width-0.5 python benchmarks/pareto.py ...                 # a subset, beside the full student

Smaller networks are distilled from the 4-step progressive student (`feature_kd`), measured with the protocol of
``make quality`` at their own number of steps, and timed with compiled engines. Rivals are full-size students with fewer
steps: progressive ones of 2 and 1, and the consistency student by its plans of 2 and 1. Latency is one process, one
thread, engines in turn (each round starts with another one), request after request; ratios are of medians.

Resumable: students, reference samples, engines and measurements stay in --work; a second call goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

import distill_rt as drt
from distill_rt.backends import processor
from distill_rt.models import load_student
from distill_rt.training.evaluate import measure_yardstick, open_bench
from distill_rt.training.quality.bench import QualityBench
from distill_rt.training.quality.gate import Yardstick, verdict
from distill_rt.training.run import distill, train
from distill_rt.training.smaller import network_cost

DATA = "digits"
TARGETS = ("openvino:cpu", "onnxruntime:cpu")
NUM_IMAGES = (1, 16)
NUM_SAMPLES = 1000
FULL = "full"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One student run at one number of steps.

    Args:
        student: its directory in --work, without the seed.
        method, settings: how it is made, from the teacher or, if `smaller`, from the full student.
        trained_steps: of the student; `steps` is the plan that runs.
    """

    name: str
    student: str
    method: str
    steps: int
    trained_steps: int | None = 4
    settings: dict[str, str] = field(default_factory=dict, hash=False)

    @property
    def smaller(self) -> bool:
        return self.method == "feature_kd"


def _smaller(name: str, **settings: str) -> Point:
    return Point(
        name=name, student=f"smaller-{name}", method="feature_kd", steps=4, trained_steps=None, settings=settings
    )


POINTS = (
    Point(name=FULL, student="progressive-digits-4", method="progressive", steps=4),
    *(
        Point(
            name=f"progressive, {n}", student=f"progressive-digits-{n}", method="progressive", steps=n, trained_steps=n
        )
        for n in (2, 1)
    ),
    *(Point(name=f"consistency, {n}", student="consistency-digits-4", method="consistency", steps=n) for n in (2, 1)),
    _smaller("no-mid", blocks="no-mid"),
    _smaller("base", blocks="base"),
    _smaller("width-0.75", width="0.75"),
    _smaller("width-0.5", width="0.5"),
    _smaller("width-0.35", width="0.35"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("runs/quality"), help="shared with make quality")
    parser.add_argument("--rounds", type=int, default=300, help="timed rounds of all engines (300)")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in os.environ.get("SEEDS", "0,1").split(",")]
    only = set(filter(None, os.environ.get("ONLY", "").split(";")))
    points = [point for point in POINTS if not only or point.name in only or point.name == FULL]
    rows = [row for seed in seeds for row in quality_rows(points, seed, args.work)]
    latency = {target: time_engines(points, seeds[0], target, args.work, args.rounds) for target in TARGETS}
    for row in rows:
        row["latency"] = {target: latency[target][row["name"]] for target in TARGETS}
    result = {
        "rows": rows,
        "full": FULL,
        "num_samples": NUM_SAMPLES,
        "rounds": args.rounds,
        "machine": {"cpu": processor.name(), "threads": 1, "python": platform.python_version()},
        "versions": {n: version(n) for n in ("distill-rt", "torch", "diffusers", "openvino", "onnxruntime")},
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def make_student(point: Point, seed: int, work: Path) -> Path:
    """The student's directory, trained if it is not there."""
    teacher, full = work / f"{DATA}-teacher", work / f"{POINTS[0].student}-seed{seed}"
    out = work / f"{point.student}-seed{seed}"
    if not teacher.exists():
        _say("teacher")
        train(f"{DATA}-teacher", teacher, resume=True)
    if point.smaller:
        make_student(POINTS[0], seed, work)
    if not out.exists():
        _say(out.name)
        source = full if point.smaller else teacher
        distill(point.method, source, out, steps=point.trained_steps, settings=point.settings, seed=seed, resume=True)
    return out


def quality_rows(points: Sequence[Point], seed: int, work: Path) -> list[dict[str, Any]]:
    """One row per point: cost, measures, verdict. The references of a seed are made once."""
    students = {point: make_student(point, seed, work) for point in points}
    bench: QualityBench | None = None
    yardsticks: dict[int, Yardstick] = {}
    rows = []
    for point, path in students.items():
        student = load_student(path)
        done = work / f"pareto-{path.name}-{point.steps}-{student.digest[:12]}.json"
        if not done.exists():
            if bench is None:
                _say(f"reference samples of seed {seed}")
                teacher = load_student(work / f"{DATA}-teacher")
                bench = open_bench(teacher, num_samples=NUM_SAMPLES, guidance=None, seed=seed)
            if point.steps not in yardsticks:
                yardsticks[point.steps] = measure_yardstick(bench, student, point.steps)
            _say(f"measuring {point.name}, seed {seed}")
            yardstick, table = yardsticks[point.steps], student.spec.plans[point.steps]
            measured = bench.measure(bench.student_samples(student, point.steps))
            failures = verdict(measured, yardstick, follows_trajectory=not table.is_stochastic)
            cost = network_cost(student.spec, student.networks[0])
            row = {
                "name": point.name,
                "kind": "full" if point.name == FULL else "smaller" if point.smaller else "fewer steps",
                "steps": point.steps,
                "seed": seed,
                "settings": student.spec.provenance["settings"],
                "parameters": cost.parameters,
                "flops_per_evaluation": cost.flops,
                "flops_per_image": cost.flops * table.num_evaluations,
                **dataclasses.asdict(measured),
                "passed": not failures,
                "failures": failures,
                "floor": dataclasses.asdict(yardstick.floor),
                "best_naive_c2st": yardstick.best("c2st"),
                "best_naive_feature_frechet": yardstick.best("feature_frechet"),
            }
            done.write_text(json.dumps(row))
        rows.append(json.loads(done.read_text()))
    return rows


def time_engines(
    points: Sequence[Point], seed: int, target: str, work: Path, num_rounds: int
) -> dict[str, dict[str, dict[str, float]]]:
    """By point and number of images: median latency in ms with its quartiles, and the ratio to the full student's."""
    pipelines = {point: drt.load(_engine(make_student(point, seed, work), target)) for point in points}
    result: dict[str, dict[str, dict[str, float]]] = {point.name: {} for point in points}
    for num_images in NUM_IMAGES:
        calls = {point: _request(pipeline, point.steps, num_images) for point, pipeline in pipelines.items()}
        samples: dict[str, list[float]] = {point.name: [] for point in points}
        turns = list(calls.items())
        for i in range(-20, num_rounds):
            turns.append(turns.pop(0))
            for point, call in turns:
                started = time.perf_counter()
                call()
                if i >= 0:
                    samples[point.name].append(1e3 * (time.perf_counter() - started))
        full = float(np.median(samples[FULL]))
        for name, values in samples.items():
            low, middle, high = (float(value) for value in np.percentile(values, (25, 50, 75)))
            result[name][str(num_images)] = {"ms": middle, "ms_25": low, "ms_75": high, "ratio": middle / full}
    for pipeline in pipelines.values():
        pipeline.close()
    _say(f"timed {len(points)} students on {target}")
    return result


def _request(pipeline: drt.Pipeline, steps: int, num_images: int) -> Callable[[], None]:
    """A request whose answer is checked: the same images for the same seed, every time."""
    labels = [i % 10 for i in range(num_images)]
    expected = pipeline.generate(labels=labels, seed=0, num_images=num_images, steps=steps).images

    def call() -> None:
        images = pipeline.generate(labels=labels, seed=0, num_images=num_images, steps=steps).images
        assert np.array_equal(images, expected)

    return call


def _engine(student: Path, target: str) -> Path:
    """The gated engine of a student, compiled if it is not there."""
    digest = load_student(student).digest[:12]
    bundle = student.with_name(f"{student.name}-{digest}.bundle")
    engine = student.with_name(f"{student.name}-{digest}.{target.replace(':', '-')}.engine")
    if not bundle.exists():
        drt.export(student, bundle)
    if not engine.exists():
        drt.compile(bundle, target, engine, precision="fp32", batches=NUM_IMAGES, num_threads=1)
    return engine


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
