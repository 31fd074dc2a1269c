"""What this GPU can do at all, measured: copies through its memory, and matrix products. The rest is compared with that."""

from __future__ import annotations

from acceptance.device import GIB, Device, open_device
from acceptance.environment import gpu_state
from acceptance.report import Recorder
from acceptance.timing import graph_us

MATRIX = 8192


def run(recorder: Recorder, argument: str) -> None:
    device = open_device(recorder)
    for name, num_bytes in (("64_mib", 64 << 20), ("1_gib", GIB), ("4_gib", 4 * GIB)):
        if recorder.dry:
            num_bytes >>= 12
        if 4 * num_bytes <= device.free_bytes:
            recorder.figure(f"copy_{name}_gb_per_s", copy_gb_per_s(num_bytes, device))
    size = 64 if recorder.dry else MATRIX
    for name in ("bfloat16", "float16", "float32"):
        recorder.figure(f"matmul_{name}_tflop_per_s", matmul_tflop_per_s(name, size, device))
    if not recorder.dry:
        recorder.figure("state_after_load", gpu_state())


def copy_gb_per_s(num_bytes: int, device: Device) -> float:
    """Bytes read plus bytes written per second of a device-to-device copy of random bytes."""
    import torch

    source = torch.randint(256, (num_bytes,), dtype=torch.uint8, device=device.name)
    target = torch.empty_like(source)
    return 2e-3 * num_bytes / graph_us([lambda: target.copy_(source)], device.name)


def matmul_tflop_per_s(dtype: str, size: int, device: Device) -> float:
    """Square matrix product of random numbers; float32 without TF32."""
    import torch

    a, b = (torch.randn(size, size, device=device.name).to(getattr(torch, dtype)) for _ in range(2))
    out = torch.empty_like(a)
    return 2e-6 * size**3 / graph_us([lambda: torch.matmul(a, b, out=out)], device.name)
