"""The processor that this process runs on: instruction sets that decide compiled code, and physical cores.

Compilers for processors specialise on instruction sets (memory layouts, packed weights, bfloat16 units), not on the model
name; so an engine moves between machines with the same architecture and the same list here, and is refused elsewhere.
"""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

CPUINFO = Path("/proc/cpuinfo")
CGROUP_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
TOPOLOGY = Path("/sys/devices/system/cpu")

# Names as in /proc/cpuinfo ("flags" on x86, "Features" on Arm) that inference libraries dispatch on.
# fmt: off
DECISIVE = frozenset({
    "sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni", "avx_vnni_int8", "avx_ne_convert", "avx512f",
    "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16",
    "amx_int8", "amx_fp16", "asimd", "asimdhp", "asimddp", "asimdfhm", "sve", "sve2", "bf16", "i8mm", "svebf16",
    "svei8mm", "sme", "sme2",
})
# fmt: on
WIDE_SUMS = frozenset({"avx_vnni", "avx_vnni_int8", "avx512_vnni", "amx_int8"})
"""Instruction sets of x86 that add int8 products up in 32 bits."""


def identity() -> dict[str, Any]:
    """What decides code compiled for this processor (JSON values): system, architecture, instruction sets."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "instruction_sets": sorted(instruction_sets()),
    }


def instruction_sets() -> frozenset[str]:
    """Decisive instruction sets of the first processor; empty where the system does not list them."""
    fields = _first_processor()
    return DECISIVE & set((fields.get("flags") or fields.get("Features") or "").split())


def adds_products_in_16_bits() -> bool:
    """Whether int8 products are added up in 16 bits, which saturate: x86 before VNNI (its `vpmaddubsw` adds two products
    of at most 255 * 127 each). Weights of 7 bits keep the sum in range."""
    return "avx" in instruction_sets() and not WIDE_SUMS & instruction_sets()


def name() -> str:
    """Model name, for people."""
    return _first_processor().get("model name") or platform.processor() or platform.machine()


def available_cores() -> int:
    """Physical cores that this process may use: affinity, hyper-threads counted once, container quota."""
    cpus = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = {_siblings(cpu) for cpu in cpus}
    quota = _quota()
    return max(1, len(cores) if quota is None else min(len(cores), int(quota)))


def _siblings(cpu: int) -> str:
    try:
        return (TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
    except OSError:  # no such file in some containers and on other systems: every processor counts
        return str(cpu)


def _quota() -> float | None:
    """Processors' worth of time that the container grants (cgroup v2 cpu.max), None for no limit."""
    try:
        limit, period = CGROUP_CPU_MAX.read_text().split()
        return None if limit == "max" else int(limit) / int(period)
    except (OSError, ValueError):  # not Linux, or cgroup v1
        return None


def _first_processor() -> dict[str, str]:
    """First block of /proc/cpuinfo; the whole file can take milliseconds on machines with hundreds of cores."""
    fields: dict[str, str] = {}
    try:
        with open(CPUINFO) as file:
            for line in file:
                key, separator, value = line.partition(":")
                if not separator:
                    break
                fields[key.strip()] = value.strip()
    except OSError:  # not Linux
        return {}
    return fields
