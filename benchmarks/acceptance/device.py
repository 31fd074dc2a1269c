"""The device that a section runs on, and what every section asks of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from acceptance.report import Recorder, Skip

GIB = 1 << 30


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """`name` is torch's ("cuda" or, in a dry run, "cpu"); sizes in bytes."""

    name: str
    capability: int
    l2_bytes: int
    free_bytes: int


def open_device(recorder: Recorder) -> Device:
    """Device 0, or the CPU in a dry run.

    Raises:
        Skip: torch or triton is missing, or torch sees no GPU.
    """
    for package in ("torch", "triton"):
        need(package)
    import torch

    if recorder.dry:
        assert os.environ.get("TRITON_INTERPRET") == "1", "the driver sets it"
        return Device(name="cpu", capability=0, l2_bytes=1 << 12, free_bytes=1 << 26)
    if not torch.cuda.is_available():
        raise Skip(f"torch {torch.__version__} sees no CUDA device")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    properties: Any = torch.cuda.get_device_properties(0)
    return Device(
        name="cuda",
        capability=10 * properties.major + properties.minor,
        l2_bytes=int(properties.L2_cache_size),
        free_bytes=int(torch.cuda.mem_get_info()[0]),
    )


def need(package: str) -> None:
    """Skip the section unless a package is installed."""
    from distill_rt.core.optional import installed

    if not installed(package):
        raise Skip(f"package {package!r} is not installed")
