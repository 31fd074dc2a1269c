"""What this machine lacks to build or run packages, found without importing torch."""

from __future__ import annotations

import importlib.util
import os
import runpy
import shutil
from pathlib import Path

from distill_rt.backends.cuda_device import cuda_devices
from distill_rt.core.optional import installed


def missing_compiler() -> str | None:
    """Why no C++ compiler is there (inductor takes ``CXX``, else g++), or None."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is not None:
        return None
    return f"inductor compiles C++, and there is no compiler {compiler} (install g++, or name another one in CXX)"


def missing_cuda() -> str | None:
    """Why torch cannot use a GPU here, or None."""
    devices, reason = cuda_devices()
    if not devices:
        return f"this machine has no usable GPU: {reason}"
    if torch_cuda_version() is None:
        return "the installed torch is built without CUDA (install one of https://pytorch.org/get-started/locally for CUDA)"
    return None


def missing_bindings() -> str | None:
    """Why requests cannot be captured, or None."""
    for module, package in (("cuda.bindings", "cuda-python"), ("cuda.core", "cuda-core")):
        if not installed(module):
            return f"the runtime on GPUs needs the package {package!r}, which is not installed"
    return None


def missing_triton() -> str | None:
    """Why there is no compiler for GPU kernels, or None."""
    return None if installed("triton") else "inductor's GPU kernels need the package 'triton', which is not installed"


def torch_cuda_version() -> str | None:
    """The CUDA version that torch is built for, None without. Its `version.py` says so and imports nothing heavy."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version: str | None = runpy.run_path(str(Path(spec.origin).with_name("version.py"))).get("cuda")
    return version
