"""SDT: one step of SD-Turbo's shape, batch 1, from a prompt to 512x512 pixels: time and peak memory, ours beside the others.

    python benchmarks/bench_text_to_image.py --work DIRECTORY [--passes 3] [--only NAME ...]

A variant holds gigabytes, so each runs in a process of its own, and its peak memory is that process's; the processes of all
variants follow each other, `--passes` times. Every image has another prompt, because our pipeline remembers embeddings. What
has to be converted or compiled is made before, by other processes: ours by `export` and `compile`, so every engine has passed
its gate. `--work` keeps it: about 30 GB. Images are compared with diffusers in float32. Results go to
benchmarks/results/sdt.json.
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
from distill_rt.core.tokenizer import Tokenizer

Array = NDArray[Any]
SEED = 7
ROUNDS = 3
COMPONENTS = ("text_encoder", "network0", "decoder")
NUM_THREADS = len(os.sched_getaffinity(0))
RESULT = Path(__file__).resolve().parent / "results/sdt.json"
REFERENCE = "diffusers eager fp32"
OPTIMUM = "optimum-intel bf16"
OPTIMUM_SCRIPT = Path(__file__).resolve().parent / "peers/optimum_intel.py"
OURS = {
    f"distill-rt {mode} {precision}": (mode, precision)
    for mode in ("step", "trajectory")
    for precision in ("bf16", "int8")
}
PRECISION = {
    REFERENCE: "fp32",
    "diffusers eager bf16": "bf16",
    "OpenVINO naive": "bf16",
    "OpenVINO bf16": "bf16",
    OPTIMUM: "bf16",
    **{name: precision for name, (_, precision) in OURS.items()},
}
MIN_PSNR_DB = {"fp32": 55.0, "bf16": 30.0, "int8": 30.0}
PROMPTS = tuple(f"photograph number {i} of a lighthouse" for i in range(1 + ROUNDS))


def noise() -> Array:
    """Unit noise (1, 4, 64, 64)."""
    return unit_noise([SEED], (4, 64, 64), INITIAL_STREAM)


def prepare(name: str, work: Path) -> None:
    """Make one file or directory of `needed`; runs in a process of its own."""
    import reference_networks as networks

    path = work / name
    if path.suffix == ".xml":
        import torch
        from peers.text_to_image import convert_openvino

        component = path.stem.partition(".")[2]
        inputs, _ = networks.sdt_spec().components()[component]
        examples = [
            torch.zeros(t.concrete(1), dtype=torch.int64 if t.dtype == "int64" else torch.float32) for t in inputs
        ]
        convert_openvino(networks.sdt_network(component), examples, path)
    elif path.suffix == ".bundle":
        from distill_rt.export import export_student

        export_student(work / "student", path, path.stem)  # type: ignore[arg-type]
    elif path.suffix == ".engine":
        from distill_rt.export import compile_bundle

        mode, precision = path.stem.split(".")
        compile_bundle(
            work / f"{mode}.bundle",
            "openvino:cpu",
            path,
            precision=precision,  # type: ignore[arg-type]
            num_threads=NUM_THREADS,
            use_cache=False,
        )
    else:
        networks.write_sdt(path)


def needed(variant: str) -> list[str]:
    """What a variant needs in the work directory, in the order in which it is made."""
    if variant in OURS:
        mode, precision = OURS[variant]
        return ["student", f"{mode}.bundle", f"{mode}.{precision}.engine"]
    if variant == OPTIMUM:
        return ["student", "openvino.decoder.xml", "optimum"]
    files = [f"openvino.{component}.xml" for component in COMPONENTS] if "OpenVINO" in variant else []
    return ["student", *files]


def ours(engine: Path) -> Callable[[int], Array]:
    from distill_rt.runtime import Pipeline

    pipeline = Pipeline.load(engine)
    return lambda i: pipeline.generate(prompts=[PROMPTS[i]], seed=SEED).images


def make(variant: str, work: Path) -> Callable[[int], Array]:
    """Number of a prompt -> image."""
    if variant in OURS:
        return ours(work / needed(variant)[-1])
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
    tokens = Tokenizer(work / "student/tokenizer.json", networks.sdt_spec().condition)(PROMPTS).ids
    call = peers.pipeline(modules, networks.SDT_SCHEDULER, noise())
    return lambda i: call(tokens[i : i + 1])


def child(variant: str, work: Path) -> None:
    """One process: load, a first image, then the timed ones; the last line of its output is JSON."""
    start = time.perf_counter()
    call = make(variant, work)
    load_s = time.perf_counter() - start
    image = call(0)
    first_s = time.perf_counter() - start
    wall, busy = [], []
    for i in range(ROUNDS):
        processor, start = time.process_time(), time.perf_counter()
        call(1 + i)
        wall.append(time.perf_counter() - start)
        busy.append((time.process_time() - processor) / NUM_THREADS)
    np.save(work / f"{variant}.npy", image)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    report = {"wall": wall, "busy": busy, "peak_mb": peak_mb, "load_s": load_s, "first_image_s": first_s}
    print(json.dumps(report))


def process(*arguments: str, python: str = sys.executable, script: str = __file__) -> str:
    return subprocess.run(
        [python, script, *arguments], check=True, stdout=subprocess.PIPE, text=True, timeout=1800
    ).stdout


def run_once(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One process of a variant: its report."""
    if name == OPTIMUM:
        np.save(args.work / "noise.npy", noise())
        options = {"--decoder": "openvino.decoder.xml", "--noise": "noise.npy", "--image": f"{name}.npy"}
        files = [text for option, file in options.items() for text in (option, str(args.work / file))]
        command = ("run", str(args.work / "optimum"), *files, "--prompts", *PROMPTS)
        output = process(*command, python=args.optimum_python, script=str(OPTIMUM_SCRIPT))
    else:
        output = process("--work", str(args.work), "--child", name)
    report: dict[str, Any] = json.loads(output.splitlines()[-1])
    return report


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
    parser.add_argument(
        "--only", nargs="+", choices=PRECISION, metavar="NAME", default=[name for name in PRECISION if name != OPTIMUM]
    )
    parser.add_argument(
        "--optimum-python", metavar="PYTHON", help="of an environment with optimum-intel; adds its row (see peers/)"
    )
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--child", choices=PRECISION, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", metavar="NAME", help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if args.prepare:
        prepare(args.prepare, args.work)
    elif args.child:
        child(args.child, args.work)
    else:
        compare(args)


def compare(args: argparse.Namespace) -> None:
    wanted = {REFERENCE, *args.only} | ({OPTIMUM} if args.optimum_python else set())
    names = [name for name in PRECISION if name in wanted]
    for name in dict.fromkeys(item for variant in names for item in needed(variant)):
        if not (args.work / name).exists():
            print("preparing", name, flush=True)
            if name == "optimum":
                paths = (str(args.work / "student"), str(args.work / name))
                process("prepare", *paths, python=args.optimum_python, script=str(OPTIMUM_SCRIPT))
            else:
                process("--work", str(args.work), "--prepare", name)
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(args.passes):
        for name in names:
            report = run_once(name, args)
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
    mine = [name for name in names if name in OURS]
    result = {
        "name": "sdt",
        "about": "SD-Turbo's shape, 1 step, batch 1, prompt to 512x512 pixels; every variant in its own processes",
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
