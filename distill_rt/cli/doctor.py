"""Say what this machine has, which targets it can build and run and why not, and where the engine cache is."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill_rt.backends import processor
from distill_rt.backends.cache import engines_directory
from distill_rt.backends.cuda_device import CudaDevice, cuda_devices
from distill_rt.backends.registry import BACKENDS, FAMILIES, ON_REQUEST, Target, backend_for
from distill_rt.cli.outcome import Outcome, pairs, size, table
from distill_rt.cli.progress import progress_bar
from distill_rt.core.errors import DistillError
from distill_rt.core.optional import installed
from distill_rt.export.quantize.environment import SETUP_COMMAND, find_python, worker_python
from distill_rt.kernels import available_implementations

EXTRA = "cpu"

PACKAGES = {
    # distribution -> what it is for
    "numpy": "generating",
    "pillow": "generating",
    "onnxruntime": "target onnxruntime:cpu",
    "openvino": "target openvino:cpu",
    "tensorrt": "targets tensorrt:smXX",
    "tensorrt-rtx": "targets tensorrt-rtx:smXX",
    "torch": "training, exporting, targets inductor:*",
    "diffusers": "training, exporting",
    "safetensors": "training, exporting, compiling",
    "onnx": "exporting, compiling",
    "onnxscript": "exporting",
    "scikit-learn": "data, measuring quality",
    "scipy": "measuring quality",
    "matplotlib": "plots",
    "rich": "progress bars",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--setup-modelopt",
        action="store_true",
        help="make the environment that --precision fp8 and int8 of TensorRT targets need (once, 0.4 GB to download)",
    )


def run(args: argparse.Namespace) -> Outcome:
    if args.setup_modelopt:
        with progress_bar() as progress:
            worker_python(progress)
    packages = {name: _version(name) for name in PACKAGES}
    gpus, no_gpu = cuda_devices()
    targets = {name: _target(name) for name in [*BACKENDS, *ON_REQUEST]}
    targets |= {f"{family}:smXX": _target(_device_of(family, gpus)) for family in FAMILIES}
    cache = engines_directory()
    engines, num_bytes = _cache_contents(cache)
    data = {
        "distill_rt": _version("distill-rt"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": {
            "name": processor.name(),
            "architecture": platform.machine(),
            "cores": processor.available_cores(),
            "instruction_sets": sorted(processor.instruction_sets()),
        },
        "gpus": [str(gpu) for gpu in gpus],
        "no_gpu": no_gpu,
        "kernels": list(available_implementations()),
        "packages": packages,
        "targets": targets,
        "modelopt": _modelopt(),
        "cache": {"path": str(cache), "writable": _writable(cache), "engines": engines, "size_bytes": num_bytes},
    }
    return Outcome(data=data, text=_text(data))


def _text(data: dict[str, Any]) -> str:
    cpu, cache = data["processor"], data["cache"]
    native = "native" if "native" in data["kernels"] else "NumPy only (reinstall without DISTILL_RT_PURE_PYTHON)"
    held = f"{cache['engines']} engines, {size(cache['size_bytes'])}{'' if cache['writable'] else ', NOT WRITABLE'}"
    about = {
        "distill-rt": f"{data['distill_rt']} on Python {data['python']} ({sys.executable})",
        "processor": f"{cpu['name']}, {cpu['cores']} cores",
        "instruction sets": " ".join(cpu["instruction_sets"]) or "unknown",
        "GPUs": ", ".join(data["gpus"]) or data["no_gpu"],
        "kernels": native,
        "modelopt": data["modelopt"]["python"] or data["modelopt"]["reason"],
        "engine cache": f"{cache['path']}: {held}",
    }
    targets = table(
        ["target", "precision", "here"],
        [[name, " ".join(t["precisions"]), t["reason"] or "builds and runs"] for name, t in data["targets"].items()],
    )
    packages = table(
        ["package", "version", "for"],
        [[name, version or "-", PACKAGES[name]] for name, version in data["packages"].items()],
    )
    return "\n\n".join([pairs(about), targets, packages])


def _device_of(family: str, gpus: Sequence[CudaDevice]) -> str:
    """A target of a family, for the GPU of this machine where the family has it."""
    for gpu in gpus:
        with contextlib.suppress(DistillError):
            return str(Target.parse(f"{family}:sm{gpu.capability}"))
    return f"{family}:sm89"


def _target(name: str) -> dict[str, Any]:
    """Whether a target can be used here, which precisions, and why not."""
    from distill_rt.backends.base import CompileOptions

    backend = backend_for(Target.parse(name))
    reason = backend.unavailable()
    precisions = []
    for precision in backend.precisions:
        try:
            backend.check(CompileOptions(precision=precision, num_threads=1))
        except DistillError:  # this processor cannot: it is left out of the list
            continue
        precisions.append(precision)
    no_build = reason or backend.cannot_build()
    if no_build is None and not installed("onnx"):
        no_build = "building needs the package 'onnx' (pip install 'distill-rt[export]')"
    no_run = reason or backend.cannot_run()
    return {
        "builds": no_build is None,
        "runs": no_run is None,
        "precisions": precisions,
        "reason": _why(no_build, no_run),
    }


def _why(no_build: str | None, no_run: str | None) -> str | None:
    if no_build is None and no_run is not None:
        return f"builds for machines that have it; {no_run}"
    if no_build is not None and no_run is None:
        return f"runs; {no_build}"
    return no_build


def _modelopt() -> dict[str, str | None]:
    """The Python that quantises for TensorRT, or why there is none."""
    try:
        python = find_python()
    except DistillError as error:
        return {"python": None, "reason": str(error)}
    missing = f"not set up; fp8 and int8 of TensorRT targets need it: {SETUP_COMMAND}"
    return {"python": None, "reason": missing} if python is None else {"python": str(python), "reason": None}


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cache_contents(root: Path) -> tuple[int, int]:
    if not root.is_dir():
        return 0, 0
    engines = [path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")]
    return len(engines), sum(file.stat().st_size for engine in engines for file in engine.rglob("*") if file.is_file())


def _writable(root: Path) -> bool:
    while not root.exists() and root != root.parent:
        root = root.parent
    return os.access(root, os.W_OK | os.X_OK)
