"""What ran: the GPU and its state, the driver, the versions, the machine."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from acceptance.device import open_device
from acceptance.report import Recorder

PACKAGES = (
    "torch", "triton", "numpy", "cuda-core", "cuda-bindings", "onnx", "safetensors", "onnxruntime", "diffusers", "tensorrt",
    "tensorrt-rtx", "pytest",
)  # fmt: skip
QUERIES = (
    "name", "driver_version", "vbios_version", "pstate", "temperature.gpu", "power.draw", "power.limit",
    "clocks.sm", "clocks.max.sm", "clocks.mem", "clocks.max.mem", "memory.total", "memory.used", "ecc.mode.current",
    "mig.mode.current", "persistence_mode", "utilization.gpu", "pcie.link.gen.current", "pcie.link.width.current",
)  # fmt: skip


def run(recorder: Recorder, argument: str) -> None:
    from distill_rt import kernels

    recorder.figure("python", sys.version.split()[0])
    recorder.figure("platform", platform.platform())
    recorder.figure("processor", _processor())
    recorder.figure("usable_processors", len(os.sched_getaffinity(0)))
    recorder.figure("versions", _versions())
    recorder.figure("kernel_implementations", list(kernels.available_implementations()))
    recorder.figure("nvcc", _output(["nvcc", "--version"]).rpartition("\n")[2])
    recorder.figure("nvidia_smi", gpu_state())
    device = open_device(recorder)
    if recorder.dry:
        return
    import torch

    properties: Any = torch.cuda.get_device_properties(0)
    recorder.figure("gpu", {
        "name": properties.name, "capability": device.capability, "multiprocessors": properties.multi_processor_count,
        "l2_bytes": device.l2_bytes, "memory_bytes": properties.total_memory, "free_bytes": device.free_bytes,
        "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version(),
    })  # fmt: skip


def gpu_state() -> dict[str, str]:
    """Clocks, power, temperature and so on by nvidia-smi; empty without it."""
    text = _output(["nvidia-smi", f"--query-gpu={','.join(QUERIES)}", "--format=csv,noheader", "--id=0"])
    values = [value.strip() for value in text.split(",")]
    return dict(zip(QUERIES, values, strict=True)) if len(values) == len(QUERIES) else {"nvidia-smi": text}


def _output(command: list[str]) -> str:
    if shutil.which(command[0]) is None:
        return f"{command[0]} is not there"
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=15).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return f"{command[0]}: {error}"


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "absent"
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
