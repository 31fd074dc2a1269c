"""Compile a bundle for one target and check the engine against the student; below the bar nothing is written.

Targets: openvino:cpu, onnxruntime:cpu, tensorrt:sm90, tensorrt-rtx:sm86+sm89 (builds without a GPU), inductor:cuda and
inductor:cpu (need torch and a C++ compiler), auto (the best of this machine; distill-rt doctor lists them). An engine for
another machine carries its golden outputs: there, distill-rt verify ENGINE --gate compares it with the student, and nothing
generates with it before. fp8 and int8 (TensorRT targets) need nvidia-modelopt in an environment of its own:
distill-rt doctor --setup-modelopt.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from distill_rt.cli.artifact_text import describe_engine
from distill_rt.cli.outcome import Outcome
from distill_rt.cli.parser import add_force, positive, positives
from distill_rt.cli.progress import progress_bar

EXTRA = "export"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="bundle directory")
    parser.add_argument("--target", default="auto", help="backend:device, or auto (auto)")
    parser.add_argument("--out", type=Path, required=True, metavar="ENGINE", help="the engine directory to write")
    parser.add_argument("--batch", type=positives, default=[1], metavar="1,4,16", help="images per call to compile (1)")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16", "fp16", "fp8", "int8"], help="of the arithmetic (the target's default)"
    )
    parser.add_argument("--threads", type=positive, help="threads of one call (every physical core)")
    parser.add_argument(
        "--refittable", action="store_true", help="let distill-rt refit put other weights into the engine (TensorRT)"
    )
    parser.add_argument("--no-cache", action="store_true", help="build it in any case, and leave the cache alone")
    add_force(parser)


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.export import compile_bundle

    with progress_bar() as progress:
        compile_bundle(
            args.bundle,
            args.target,
            args.out,
            precision=args.precision,
            batches=tuple(args.batch),
            num_threads=args.threads,
            refittable=args.refittable,
            force=args.force,
            use_cache=not args.no_cache,
            progress=progress,
        )
    description = describe_engine(args.out)
    going_on = f"use it: distill-rt {_first_use(description.data['contract'], args.out)}"
    if description.data["gate"] is None:
        going_on = f"copy it to its target, and there: distill-rt verify {args.out} --gate"
    return Outcome(data=description.data, text=f"{description.text}\n{going_on}")


def _first_use(contract: dict[str, Any], engine: Path) -> str:
    """What works for any engine of this contract, as it stands."""
    shape = contract["sample_shape"] if contract["decoder"] is None else contract["decoder"]["image_shape"]
    if shape[0] not in (1, 3, 4):  # no PNG holds such images
        return f"bench {engine}"
    condition = {"label": " --label 0", "text": " --prompt TEXT"}.get(contract["condition"]["kind"], "")
    return f"generate {engine}{condition} --out images.png"
