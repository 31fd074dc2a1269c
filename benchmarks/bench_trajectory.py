"""C10: 4 steps of the CIFAR-10 DDPM network, batch 1, from noise to pixels: ours beside what a user would run instead.

    python benchmarks/bench_trajectory.py --work DIRECTORY [--rounds 30] [--only NAME ...]

All variants have the same weights, noise and step rule, and run alternated in one process. Answers are compared with
diffusers in float32 before anything is timed. `--work` keeps the student and what was compiled from it between runs. Results go
to benchmarks/results/c10.json; benchmarks/render_performance.py makes docs/performance.md of it.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

import reference_networks as networks
from machine import describe, write_result
from matmul_rate import matmul_rates
from paired import Call, alternate, psnr_db
from peers import unet_loops

from distill_rt.core.noise import INITIAL_STREAM, unit_noise
from distill_rt.runtime import Pipeline

SEED = 7
SHAPE = (1, 3, 32, 32)
STEPS = networks.C10_STEPS
NUM_THREADS = len(os.sched_getaffinity(0))
MIN_PSNR_DB = {"fp32": 55.0, "bf16": 38.0, "int8": 30.0}
RESULT = Path(__file__).resolve().parent / "results/c10.json"
REFERENCE = "diffusers eager fp32"


def ours(work: Path, mode: str, precision: str) -> Call:
    from distill_rt.export import compile_bundle, export_student

    student, bundle, engine = work / "student", work / f"{mode}.bundle", work / f"{mode}.{precision}.engine"
    networks.write_c10(student)
    if not bundle.exists():
        export_student(student, bundle, mode)  # type: ignore[arg-type]
    if not engine.exists():
        compile_bundle(bundle, "openvino:cpu", engine, precision=precision, batches=[1], num_threads=NUM_THREADS)  # type: ignore[arg-type]
    pipeline = Pipeline.load(engine)
    return lambda: pipeline.generate(seed=SEED).images


def loop(make: Callable[[], unet_loops.Evaluate]) -> Callable[[Path], Call]:
    noise = unit_noise([SEED], SHAPE[1:], INITIAL_STREAM)
    return lambda work: unet_loops.step_loop(make(), networks.C10_SCHEDULER, STEPS, noise)


def graph(work: Path) -> Path:
    """The exported graph, which peers get too."""
    from distill_rt.export import export_student

    if not (work / "step.bundle").exists():
        export_student(networks.write_c10(work / "student"), work / "step.bundle")
    return work / "step.bundle/onnx/network0.onnx"


def variants() -> dict[str, tuple[str, Callable[[Path], Call]]]:
    """Name -> precision, and how to make the call."""
    unet, bf16, fp32 = networks.c10_diffusers, torch.bfloat16, torch.float32
    noise = unit_noise([SEED], SHAPE[1:], INITIAL_STREAM)

    def with_graph(make: Callable[[Path], unet_loops.Evaluate]) -> Callable[[Path], Call]:
        return lambda work: unet_loops.step_loop(make(graph(work)), networks.C10_SCHEDULER, STEPS, noise)

    return {
        REFERENCE: ("fp32", loop(lambda: unet_loops.eager(unet(), fp32, channels_last=False))),
        "diffusers eager fp32 channels_last": (
            "fp32",
            loop(lambda: unet_loops.eager(unet(), fp32, channels_last=True)),
        ),
        "diffusers eager bf16 channels_last": (
            "bf16",
            loop(lambda: unet_loops.eager(unet(), bf16, channels_last=True)),
        ),
        "torch.compile fp32": ("fp32", loop(lambda: unet_loops.torch_compile(unet(), fp32))),
        "torch.compile bf16": ("bf16", loop(lambda: unet_loops.torch_compile(unet(), bf16))),
        "ONNX Runtime step loop fp32": ("fp32", with_graph(lambda path: unet_loops.onnxruntime(path, NUM_THREADS))),
        "OpenVINO naive": ("bf16", with_graph(unet_loops.openvino_naive)),
        "OpenVINO step loop bf16": ("bf16", loop(lambda: unet_loops.openvino(unet(), SHAPE, NUM_THREADS))),
        "distill-rt step fp32": ("fp32", lambda work: ours(work, "step", "fp32")),
        "distill-rt step bf16": ("bf16", lambda work: ours(work, "step", "bf16")),
        "distill-rt trajectory bf16": ("bf16", lambda work: ours(work, "trajectory", "bf16")),
        "distill-rt trajectory int8": ("int8", lambda work: ours(work, "trajectory", "int8")),
    }


def flops() -> int:
    """Of one image: all steps of the network as it was trained, not as we rewrote it."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        networks.c10_diffusers()(torch.zeros(SHAPE), torch.zeros(1))
    return int(counter.get_total_flops()) * STEPS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", nargs="+", choices=variants(), metavar="NAME", default=list(variants()))
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(NUM_THREADS)

    calls: dict[str, Call] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, (precision, make) in variants().items():
        if name not in {REFERENCE, *args.only}:
            continue
        print("making", name, flush=True)
        calls[name] = make(args.work)
        image = calls[name]()
        rows[name] = {"precision": precision, "psnr_db": psnr_db(image, calls[REFERENCE]())}
        if rows[name]["psnr_db"] < MIN_PSNR_DB[precision]:
            raise SystemExit(f"{name} is not the same image: {rows[name]}")
        gc.collect()
    rates, work = matmul_rates(NUM_THREADS), flops()
    samples = alternate(calls, rounds=args.rounds)
    for name, row in rows.items():
        row |= samples.summary(name)
        row["gflops"] = round(work / row["busy_median_ms"] / 1e6, 1)
        row["share_of_matmul_rate"] = round(row["gflops"] / rates[row["precision"]], 3)
    mine = [name for name in calls if name.startswith("distill-rt")]
    ratios = [
        {"fast": fast, "slow": slow, **samples.ratio(slow, fast)} for fast in mine for slow in calls if slow not in mine
    ]
    result = {
        "name": "c10",
        "about": "CIFAR-10 DDPM network, 4 steps, batch 1, noise to pixels",
        "gflop_per_image": round(work / 1e9, 2),
        "matmul_gflops": rates,
        "variants": rows,
        "ratios": ratios,
        **describe(NUM_THREADS),
    }
    write_result(args.out, result)
    for name, row in rows.items():
        print(f"{row['median_ms']:9.2f} ms  busy {row['busy_median_ms']:8.2f}  {row['psnr_db']:5.1f} dB  {name}")
    for ratio in ratios:
        interval = f"{ratio['ratio']:5.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}] busy {ratio['busy_ratio']:.2f}"
        print(f"{interval}  {ratio['fast']} over {ratio['slow']}")


if __name__ == "__main__":
    main()
