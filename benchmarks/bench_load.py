"""From a new process to its first image: C10's engines, whose compiled blobs lie on disk.

    python benchmarks/bench_load.py --work DIRECTORY [--rounds 9]

A process imports the package, verifies and loads the engine, and generates an image (``preload=False``, as ``distill-rt
generate`` does, so without a call to warm up); `load_s` counts from `load`, when all packages are imported. Three engines of
each precision: the trajectory, the trajectory with OpenVINO's own choice of elementwise kernels
(`distill_rt.backends.openvino.MANY_KERNELS`), and the step engine, whose graph is a quarter as large. Then one process calls
them in turns: what a quick start costs later. Precisions that the processor lacks are left out.
Results go to benchmarks/results/load.json; benchmarks/render_performance.py shows them in docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import reference_networks as networks
from machine import describe, write_result
from paired import alternate, psnr_db

from distill_rt.backends import openvino
from distill_rt.core.artifacts import Precision
from distill_rt.core.errors import TargetError
from distill_rt.runtime import Pipeline

NUM_THREADS = len(os.sched_getaffinity(0))
RESULT = Path(__file__).resolve().parent / "results/load.json"
Engine = Literal["trajectory", "fused", "step"]
ENGINES: tuple[Engine, ...] = ("trajectory", "fused", "step")
PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "int8")
SEED = 7
MIN_PSNR_DB = 30.0
FIRST_IMAGE = """
import json, sys, time
started = time.perf_counter()
import distill_rt as drt
from distill_rt.runtime import Pipeline
from distill_rt.backends.openvino import import_openvino
import_openvino()
imported = time.perf_counter()
drt.load(sys.argv[1], preload=False).generate(seed=7)
now = time.perf_counter()
print(json.dumps({"first_image_s": now - started, "load_s": now - imported, "busy_s": time.process_time()}))
"""


def build(work: Path, precision: Precision, kind: Engine) -> Path | None:
    """The engine, or None where the processor cannot compute in this precision; kept between runs."""
    from distill_rt.export import compile_bundle, export_student

    mode: Literal["step", "trajectory"] = "step" if kind == "step" else "trajectory"
    fused = kind == "fused"
    bundle, engine = work / f"{mode}.bundle", work / f"{mode}.{precision}{'.fused' if fused else ''}.engine"
    if not bundle.exists():
        export_student(networks.write_c10(work / "student"), bundle, mode)
    if not engine.exists():
        ours = openvino.MANY_KERNELS
        openvino.MANY_KERNELS = {} if fused else ours
        try:
            compile_bundle(
                bundle,
                "openvino:cpu",
                engine,
                precision=precision,
                batches=[1],
                num_threads=NUM_THREADS,
                use_cache=False,
            )
        except TargetError as error:
            if error.code != "precision-unsupported":
                raise
            return None
        finally:
            openvino.MANY_KERNELS = ours
    return engine


def first_image(engine: Path) -> dict[str, float]:
    """Seconds in a process of its own."""
    done = subprocess.run([sys.executable, "-P", "-c", FIRST_IMAGE, engine], check=True, capture_output=True, text=True)
    seconds: dict[str, float] = json.loads(done.stdout)
    return seconds


def measure(engines: dict[str, Path], rounds: int) -> dict[str, Any]:
    """All of them in turns: median seconds to the first image, and a call's time as a multiple of the trajectory's."""
    for engine in engines.values():
        first_image(engine)  # the files are in memory from here on
    seconds = [{kind: first_image(engine) for kind, engine in engines.items()} for _ in range(rounds)]
    rows: dict[str, Any] = {
        kind: {key: round(statistics.median(took[kind][key] for took in seconds), 3) for key in seconds[0][kind]}
        for kind in engines
    }
    with contextlib.ExitStack() as stack:
        pipes = {kind: stack.enter_context(Pipeline.load(engine)) for kind, engine in engines.items()}
        calls = {kind: functools.partial(_images, pipe) for kind, pipe in pipes.items()}
        for kind in engines:
            rows[kind]["psnr_db"] = psnr_db(calls["trajectory"](), calls[kind]())
            if rows[kind]["psnr_db"] < MIN_PSNR_DB:
                raise SystemExit(f"not the same image: {kind}, {rows}")
        samples = alternate(calls, rounds=10 * rounds)
    for kind in engines:
        rows[kind] |= {"call_ms": samples.summary(kind)["median_ms"], "call": samples.ratio(kind, "trajectory")}
    return rows


def _images(pipe: Pipeline) -> Any:
    return pipe.generate(seed=SEED).images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = {}
    for precision in PRECISIONS:
        engines = {kind: engine for kind in ENGINES if (engine := build(args.work, precision, kind)) is not None}
        if engines:
            rows[precision] = measure(engines, args.rounds)
            print(f"{precision}: {rows[precision]}", flush=True)
    write_result(
        args.out,
        {
            "name": "load",
            "about": "C10, 4 steps, batch 1: from a new process to its first image",
            "engines": rows,
            **describe(NUM_THREADS),
        },
    )


if __name__ == "__main__":
    main()
