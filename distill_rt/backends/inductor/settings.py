"""Every inductor setting that decides a package, spelled out: many take their default from the environment."""

from __future__ import annotations

import platform
from typing import Any

from distill_rt.backends import processor

COMMON: dict[str, Any] = {
    # Weights are constants: folded, packed and laid out for the kernels that read them.
    "freezing": True,
    "use_fast_math": False,
    "fallback_random": False,
    "layout_optimization": True,
}


def cpu_settings(num_threads: int) -> dict[str, Any]:
    """For processors: kernels for `num_threads` threads and the instruction sets of the fingerprint, no others."""
    return {
        **COMMON,
        "max_autotune": False,
        "cpp.threads": num_threads,
        "cpp.dynamic_threads": False,
        "cpp.march": _architecture_level(processor.instruction_sets()),
    }


def cuda_settings() -> dict[str, Any]:
    """For GPUs: channels innermost in convolutions, which tensor cores want.

    Measuring kernels of products and convolutions (`max_autotune`) takes minutes per package; it stays off until a GPU shows
    what it gains over cuBLAS and cuDNN.
    """
    return {
        **COMMON,
        "max_autotune": False,
        "max_autotune_gemm_backends": "ATEN,TRITON",
        "max_autotune_conv_backends": "ATEN,TRITON",
        "coordinate_descent_tuning": False,
        "force_layout_optimization": True,
        # The request is one captured graph of our own.
        "triton.cudagraphs": False,
    }


def _architecture_level(instruction_sets: frozenset[str]) -> str | None:
    """The x86-64 level for ``-march`` (System V ABI, x86-64 supplement), None on other architectures: inductor's own choice.

    ``native`` would use instruction sets that the fingerprint does not list, and the package would crash on its twin.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return None
    if instruction_sets >= {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx2", "fma"}:
        return "x86-64-v4"
    return "x86-64-v3" if instruction_sets >= {"avx2", "fma", "f16c"} else "x86-64-v2"
