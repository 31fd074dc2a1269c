"""What the CUDA driver answers, as errors that say what to do.

Codes: CUDA driver API reference, `CUresult`.
"""

from __future__ import annotations

from typing import Any

from distill_rt.core.errors import DistillError, ResourceError, TargetError

OUT_OF_MEMORY = 2
_OLD_DRIVER = frozenset({35, 222, 803})
_NO_DEVICE = frozenset({3, 100, 101, 802})
_CAPTURE = frozenset({900, 901, 902, 903, 904, 905, 906, 907, 908, 918})
_LOST_CONTEXT = frozenset({700, 702, 709, 710, 713, 714, 715, 716, 717, 718, 719, 720})
"""After one of these every later call of the process fails too."""


def driver_error(code: int, name: str, what: str) -> DistillError:
    """The error for a driver's answer.

    Args:
        code, name: number and name of the `CUresult`.
        what: what was being done, such as ``cannot capture the request``.
    """
    message, details = f"{what}: the CUDA driver answers {name} ({code})", {"cuda_error": name, "cuda_code": code}
    if code == OUT_OF_MEMORY:
        return ResourceError(message, code="gpu-memory", hint="free GPU memory", details=details)
    if code in _OLD_DRIVER:
        hint = "update the NVIDIA driver (TensorRT for CUDA 12 needs r535 or later, for CUDA 13 r580 or later)"
        return TargetError(message, code="driver-too-old", hint=hint, details=details)
    if code in _NO_DEVICE:
        hint = "check `nvidia-smi` and CUDA_VISIBLE_DEVICES"
        return TargetError(message, code="gpu-missing", hint=hint, details=details)
    if code in _CAPTURE:
        hint = (
            "load it without captured graphs (capture=False, command line: --no-capture), and report this with the log"
        )
        return TargetError(message, code="capture-failed", hint=hint, details=details)
    if code in _LOST_CONTEXT:
        hint = "the GPU stopped this process's work: start it again; compile the engine again if it happens once more"
        return TargetError(message, code="gpu-work-failed", hint=hint, details=details)
    return TargetError(
        message, code="cuda-error", hint="start again; `nvidia-smi` shows the GPU's state", details=details
    )


def out_of_memory(needed_bytes: int, free_bytes: int, total_bytes: int, gpu: str, what: str) -> ResourceError:
    """Not enough memory: names the need and what is free."""
    return ResourceError(
        f"not enough GPU memory for {what}: {mebibytes(needed_bytes)} are needed, "
        f"{mebibytes(free_bytes)} of {mebibytes(total_bytes)} are free on {gpu}",
        code="gpu-memory",
        hint="close other programs on the GPU, load fewer workers, or compile for smaller batches",
        details={"needed_bytes": needed_bytes, "free_bytes": free_bytes, "total_bytes": total_bytes},
    )


def mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB"


def result_name(result: Any) -> str:
    """Name of a `CUresult`, as the driver calls it."""
    return str(getattr(result, "name", "an unknown error"))
