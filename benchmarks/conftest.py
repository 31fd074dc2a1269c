"""What every benchmark file records beside its times: the processor and the versions that made them."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("distill-rt", "numpy", "torch", "onnxruntime", "openvino", "tensorrt", "diffusers")


def cpu_model() -> str:
    """The processor's marketing name, which the platform module does not know on Linux."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


def versions() -> dict[str, str]:
    """Installed versions of the packages that speed depends on."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    machine_info["cpu_model"] = cpu_model()
    machine_info["num_processors"] = os.cpu_count()
    if hasattr(os, "sched_getaffinity"):
        machine_info["num_usable_processors"] = len(os.sched_getaffinity(0))
    machine_info["versions"] = versions()
    machine_info["omp_num_threads"] = os.environ.get("OMP_NUM_THREADS")
