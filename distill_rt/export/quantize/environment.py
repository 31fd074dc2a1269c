"""The Python that runs nvidia-modelopt: an environment of its own, made once, kept in the cache directory.

modelopt 0.47 pins onnx 1.21 and onnxruntime 1.24 and would replace the ones that compile and run everything else. What it
declares is also far more than a graph on a processor needs: onnxruntime-gpu, CuPy and a CUDA build of torch, several GB. So its
dependencies are listed here, with ONNX Runtime and torch for processors, and modelopt is installed without its own list: about
0.4 GB to download, 1.4 GB on disk.

``DISTILL_RT_MODELOPT_PYTHON`` names another Python that has it; then nothing is installed.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from filelock import FileLock

from distill_rt.backends.cache import engines_directory
from distill_rt.core.errors import ResourceError, TargetError
from distill_rt.export.progress import Progress, silent
from distill_rt.export.quantize.child import log_tail, run_child

PYTHON_VARIABLE = "DISTILL_RT_MODELOPT_PYTHON"
MODELOPT_VERSION = "0.47.0"
REQUIREMENTS = (
    "numpy==2.4.6",
    "ml_dtypes==0.6.0",
    "onnx==1.21.0",
    "onnxruntime==1.24.4",
    "onnx-graphsurgeon==0.6.1",
    "onnxconverter-common==1.16.0",
    "onnxscript==0.7.2",
    "onnxslim==0.1.98",
    "polygraphy==0.53.6",
    "scipy==1.17.1",
    "nvidia-ml-py==13.615.71",
    "omegaconf==2.4.0",
    "pydantic==2.14.3",
    "PuLP==3.3.2",
    "PyYAML==6.0.3",
    "regex==2026.11.15",
    "rich==15.0.0",
    "safetensors==0.8.0",
    "tqdm==4.70.1",
    "packaging==26.3",
    "setuptools==84.2.1",
    "ninja==1.13.2",
    "lief==1.0.0",
    "cppimport==26.4.17",
)
"""What modelopt 0.47.0 imports to quantise a graph, in versions that were run together."""
TORCH = "torch==2.13.0"
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
"""Offers torch without CUDA; pip prefers its ``2.13.0+cpu`` to the ``2.13.0`` of PyPI."""
NEEDED_BYTES = 2_500_000_000
SETUP_SECONDS = 3600.0
SETUP_COMMAND = "distill-rt doctor --setup-modelopt"
_READY = "ready"


def worker_directory() -> Path:
    """Where the environment is made: beside the cached engines."""
    return engines_directory().parent / f"modelopt-{MODELOPT_VERSION}"


def find_python() -> Path | None:
    """The Python of an environment that exists, None if there is none yet.

    Raises:
        TargetError: the variable names something that is no program.
    """
    named = os.environ.get(PYTHON_VARIABLE)
    if named:
        path = Path(named).expanduser()
        if not (path.is_file() and os.access(path, os.X_OK)):
            raise TargetError(
                f"{PYTHON_VARIABLE} names {path}, which is not a program",
                code="modelopt-missing",
                hint=f"give the python of an environment with nvidia-modelopt {MODELOPT_VERSION}, or unset it",
            )
        return path
    directory = worker_directory()
    return _python(directory) if (directory / _READY).is_file() else None


def worker_python(progress: Progress = silent) -> Path:
    """The Python of the environment, which is made now if there is none; a second process waits for the first.

    Raises:
        TargetError: it cannot be made (no network, no such packages): says what to run.
        ResourceError: the disk is full.
    """
    found = find_python()
    if found is not None:
        return found
    directory = worker_directory()
    directory.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{directory}.lock"):
        found = find_python()  # made by somebody else while we waited
        if found is None:
            _create(directory, progress)
            found = _python(directory)
    return found


def _python(directory: Path) -> Path:
    return directory / "bin" / "python"


def _create(directory: Path, progress: Progress) -> None:
    free = shutil.disk_usage(directory.parent).free
    if free < NEEDED_BYTES:
        raise ResourceError(
            f"the environment of nvidia-modelopt needs {NEEDED_BYTES / 1e9:.1f} GB in {directory.parent}, "
            f"which has {free / 1e9:.1f} GB",
            code="disk-full",
            hint="free some space, or let DISTILL_RT_CACHE name another disk",
        )
    log = directory.with_name(f"{directory.name}.log")
    log.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)
    python = str(_python(directory))
    pip = [python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input"]
    stages = (
        ("making an environment for nvidia-modelopt", [sys.executable, "-I", "-m", "venv", str(directory)]),
        # Alone: with two indices pip asks both for every package, which takes minutes where one cannot be reached.
        (
            "installing torch for processors: once, 0.2 GB to download",
            [*pip, "--retries", "1", "--no-deps", "--extra-index-url", TORCH_INDEX, TORCH],
        ),
        ("installing what nvidia-modelopt needs: once, 0.2 GB to download", [*pip, TORCH, *REQUIREMENTS]),
        ("installing nvidia-modelopt", [*pip, "--no-deps", f"nvidia-modelopt=={MODELOPT_VERSION}"]),
        ("trying nvidia-modelopt", [python, "-I", "-c", "import modelopt.onnx.quantization"]),
    )
    try:
        for stage, command in stages:
            progress(stage)
            code = run_child(command, log, time_limit_seconds=SETUP_SECONDS)
            if code != 0:
                raise _setup_error(stage, code, log)
        (directory / _READY).touch()
    except BaseException:  # an interrupt too: half an environment is worse than none
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _setup_error(stage: str, code: int | None, log: Path) -> TargetError | ResourceError:
    said = log_tail(log)
    lines = [line for line in said.splitlines() if line.strip()]
    reason = next((line for line in reversed(lines) if line.startswith("ERROR:")), lines[-1] if lines else "")
    if "No space left on device" in said:
        return ResourceError(
            f"{stage}: the disk is full", code="disk-full", hint="free some space, or let DISTILL_RT_CACHE name another"
        )
    what = "took too long" if code is None else " ".join(reason.split())[:300] or f"ended with {code}"
    return TargetError(
        f"{stage} failed: {what}",
        code="modelopt-setup-failed",
        hint=f"with a network run {SETUP_COMMAND}, or let {PYTHON_VARIABLE} name a Python that has nvidia-modelopt "
        f"{MODELOPT_VERSION}; --precision fp16 needs neither",
        details={"log": said},
    )
