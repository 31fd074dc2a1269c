"""SDT: one step of SD-Turbo's shape, batch 1, from token ids to 512x512 pixels: time and peak memory, ours beside the others.

    python benchmarks/bench_text_to_image.py --work DIRECTORY [--passes 3] [--only NAME ...]

A variant holds gigabytes, so each runs in a process of its own, and its peak memory is that process's; the processes of all
variants follow each other, `--passes` times. What has to be converted or compiled is made before, by other processes
(`--work` keeps it: about 20 GB). Images are compared with diffusers in float32. Results go to benchmarks/results/sdt.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from machine import describe, write_result
from matmul_rate import matmul_rates
from paired import Samples, psnr_db

from distill_rt.core.noise import INITIAL_STREAM, unit_noise

Array = NDArray[Any]
SEED = 7
ROUNDS = 3
COMPONENTS = ("text_encoder", "network0", "decoder")
NUM_THREADS = len(os.sched_getaffinity(0))
RESULT = Path(__file__).resolve().parent / "results/sdt.json"
REFERENCE = "diffusers eager fp32"
PRECISION = {
    REFERENCE: "fp32",
    "diffusers eager bf16": "bf16",
    "OpenVINO naive": "bf16",
    "OpenVINO bf16": "bf16",
    "distill-rt bf16": "bf16",
}
MIN_PSNR_DB = {"fp32": 55.0, "bf16": 30.0}


def prompt() -> tuple[Array, Array]:
    """Token ids (1, 77) and unit noise (1, 4, 64, 64)."""
    tokens = np.random.default_rng(SEED).integers(0, 49408, (1, 77))
    return tokens, unit_noise([SEED], (4, 64, 64), INITIAL_STREAM)


def prepare(variant: str, component: str, work: Path) -> None:
    """Convert or compile one component; runs in a process of its own."""
    import reference_networks as networks
    import torch

    spec = networks.sdt_spec()
    inputs, outputs = spec.components()[component]
    if variant != "distill-rt bf16":
        from peers.text_to_image import convert_openvino

        examples = [
            torch.zeros(t.concrete(1), dtype=torch.int64 if t.dtype == "int64" else torch.float32) for t in inputs
        ]
        convert_openvino(networks.sdt_network(component), examples, work / f"openvino.{component}.xml")
        return
    from distill_rt.backends.base import CompileOptions
    from distill_rt.backends.openvino import OpenVINO
    from distill_rt.export.onnx_graph import export_component
    from distill_rt.export.rewrites import rewrite_graph

    backend = OpenVINO()
    exported = export_component(networks.sdt_network(component), inputs, outputs, work, f"{component}.onnx")
    graph = rewrite_graph(work / exported.file, backend.rewrites, work / f"{component}.rewritten.onnx")
    options = CompileOptions(precision="bf16", num_threads=NUM_THREADS)
    backend.compile(graph, exported, [1], work, component, options)


def ours(work: Path) -> Callable[[], Array]:
    """The component programs of an engine and the row of its table, as the runtime's worker runs them."""
    import reference_networks as networks

    from distill_rt.backends.base import CompileOptions
    from distill_rt.backends.openvino import OpenVINO

    spec, backend = networks.sdt_spec(), OpenVINO()
    options = CompileOptions(precision="bf16", num_threads=NUM_THREADS)
    # The largest first: while it is packed, nothing else is there yet.
    unet, text, decoder = (
        backend.load(work, (f"{name}.blob",), *spec.components()[name], 1, options)
        for name in ("network0", "text_encoder", "decoder")
    )
    (row,) = spec.plans[1].rows
    a, b, _ = row.folded()
    tokens, noise = prompt()

    def call() -> Array:
        text.inputs["tokens"][:] = tokens
        text.run()
        unet.inputs["sample"][:] = row.c_in * noise
        unet.inputs["time"][:] = row.time
        unet.inputs["text"][:] = text.outputs["text"]
        unet.run()
        decoder.inputs["latent"][:] = a * noise + b * unet.outputs["prediction"]
        decoder.run()
        image = decoder.outputs["image"].transpose(0, 2, 3, 1)
        return np.rint(np.clip(image * 127.5 + 127.5, 0, 255)).astype(np.uint8)

    return call


def make(variant: str, work: Path) -> Callable[[], Array]:
    if variant == "distill-rt bf16":
        return ours(work)
    import reference_networks as networks
    import torch
    from peers import text_to_image as peers

    torch.set_num_threads(NUM_THREADS)
    if "eager" in variant:
        dtype = torch.bfloat16 if "bf16" in variant else torch.float32
        modules = peers.eager({name: networks.sdt_network(name) for name in COMPONENTS}, dtype)
    else:
        latency = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
        files = {name: work / f"openvino.{name}.xml" for name in COMPONENTS}
        naive = variant == "OpenVINO naive"
        modules = peers.openvino_files(files, 0 if naive else NUM_THREADS, {} if naive else latency)
    return peers.pipeline(modules, networks.SDT_SCHEDULER, *prompt())


def child(variant: str, work: Path) -> None:
    """One process: load, a first image, then the timed ones; the last line of its output is JSON."""
    start = time.perf_counter()
    call = make(variant, work)
    load_s = time.perf_counter() - start
    image = call()
    first_s = time.perf_counter() - start
    wall, busy = [], []
    for _ in range(ROUNDS):
        processor, start = time.process_time(), time.perf_counter()
        call()
        wall.append(time.perf_counter() - start)
        busy.append((time.process_time() - processor) / NUM_THREADS)
    np.save(work / f"{variant}.npy", image)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report = {"wall": wall, "busy": busy, "peak_mb": peak_mb, "load_s": load_s, "first_image_s": first_s}
    print(json.dumps(report))


def process(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True, timeout=1800
    ).stdout


def flops() -> float:
    """GFLOP of one image."""
    import reference_networks as networks
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    total = 0
    with torch.device("meta"):
        for name, (inputs, _) in networks.sdt_spec().components().items():
            arguments = [
                torch.zeros(t.concrete(1), dtype=torch.int64 if t.dtype == "int64" else torch.float32) for t in inputs
            ]
            with FlopCounterMode(display=False) as counter:
                networks.sdt_network(name)(*arguments)
            total += counter.get_total_flops()
    return total / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PRECISION, metavar="NAME", default=list(PRECISION))
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--child", choices=PRECISION, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", choices=COMPONENTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.prepare:
        prepare(args.child, args.prepare, args.work)
    elif args.child:
        child(args.child, args.work)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    names = [name for name in PRECISION if name in {REFERENCE, *args.only}]
    for name in ("OpenVINO bf16", "distill-rt bf16"):
        for component in COMPONENTS:
            file = args.work / (f"{component}.blob" if name.startswith("distill") else f"openvino.{component}.xml")
            if name in names and not file.exists():
                print("preparing", file.name, flush=True)
                process("--work", str(args.work), "--child", name, "--prepare", component)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(args.passes):
        for name in names:
            report = json.loads(process("--work", str(args.work), "--child", name).splitlines()[-1])
            runs[name].append(report)
            print(name, {key: np.round(value, 2).tolist() for key, value in report.items()}, flush=True)
    samples = Samples(
        wall={name: np.concatenate([run["wall"] for run in reports]) for name, reports in runs.items()},
        busy={name: np.concatenate([run["busy"] for run in reports]) for name, reports in runs.items()},
    )
    rates, work = matmul_rates(NUM_THREADS), flops()
    rows: dict[str, dict[str, Any]] = {}
    for name, reports in runs.items():
        row = {"precision": PRECISION[name], **samples.summary(name)}
        row["psnr_db"] = psnr_db(np.load(args.work / f"{name}.npy"), np.load(args.work / f"{REFERENCE}.npy"))
        if row["psnr_db"] < MIN_PSNR_DB[PRECISION[name]]:
            raise SystemExit(f"{name} is not the same image: {row}")
        row["gflops"] = round(work / row["busy_median_ms"] * 1e3, 1)
        row["share_of_matmul_rate"] = round(row["gflops"] / rates[row["precision"]], 3)
        for key in ("peak_mb", "load_s", "first_image_s"):
            row[key] = round(float(np.median([report[key] for report in reports])), 2)
        rows[name] = row
    mine = [name for name in names if name.startswith("distill-rt")]
    result = {
        "name": "sdt",
        "about": "SD-Turbo's shape, 1 step, batch 1, token ids to 512x512 pixels; every variant in its own processes",
        "gflop_per_image": round(work, 1),
        "matmul_gflops": rates,
        "variants": rows,
        "ratios": [
            {
                "fast": fast,
                "slow": slow,
                **samples.ratio(slow, fast),
                "memory": round(rows[fast]["peak_mb"] / rows[slow]["peak_mb"], 2),
            }
            for fast in mine
            for slow in names
            if slow not in mine
        ],
        **describe(NUM_THREADS),
    }
    write_result(args.out, result)
    print(json.dumps(result["ratios"], indent=1))


if __name__ == "__main__":
    main()
