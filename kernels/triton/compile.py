"""Compiles variants of the kernels ahead of time, without a GPU; ``python -m`` runs a list of jobs for `kernels.aot`.

Line information is left out (TRITON_DISABLE_LINE_INFO=1, set by the parent): without it the same sources and the same Triton
give the same bytes on every machine.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from distill_rt.core import codec
from distill_rt.kernels.triton import dynamic_threshold, guidance, philox_normal, table_row, to_uint8
from distill_rt.kernels.triton.ptx import inexact_instructions, parse_entry
from distill_rt.kernels.triton.variants import ALIGNMENT, PARAMETERS, Variant

KERNELS: dict[str, Any] = {
    "table_row": table_row.table_row,
    "philox_normal": philox_normal.philox_normal,
    "guidance_factor": guidance.guidance_factor,
    "dynamic_threshold": dynamic_threshold.dynamic_threshold,
    "to_uint8": to_uint8.to_uint8,
}

PTX_VERSION = 80
"""PTX 8.0 (CUDA 12.0) for the fallback, so that every driver of CUDA 12 and later takes it."""

MAX_SHARED_BYTES = 48 << 10
"""What every device gives to a launch that asks for nothing special."""

_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """Compile `variant` for `target`: "sm_90" makes a cubin, "ptx_80" PTX for that capability and later ones."""

    variant: Variant
    target: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What a job made; the image itself is in `file`.

    Args:
        arch, ptx_version, entry: as in the PTX.
        parameter_sizes: bytes of every parameter of the entry, those that Triton appended included.
        registers, stack_bytes: per thread, None for PTX. Without local arrays in our kernels the stack holds spills only.
    """

    file: str
    arch: str
    ptx_version: str
    entry: str
    num_warps: int
    shared_bytes: int
    parameter_sizes: tuple[int, ...]
    registers: int | None
    stack_bytes: int | None
    triton_version: str


def compile_job(job: Job, file: Path) -> Outcome:
    """Compile one variant and write its image to `file`.

    Raises:
        ValueError: this Triton makes something that our launcher or our promise about bits cannot take.
    """
    variant = job.variant
    kind, _, capability = job.target.partition("_")
    options: dict[str, Any] = {"num_warps": variant.num_warps, "num_stages": 1, "enable_fp_fusion": False}
    if variant.max_registers is not None:
        options["maxnreg"] = variant.max_registers
    if kind == "ptx":
        options["ptx_version"] = PTX_VERSION
    source = ASTSource(
        fn=KERNELS[variant.kernel],
        signature=variant.signature(),
        constexprs=variant.constants,
        attrs={(i,): [["tt.divisibility", ALIGNMENT]] for i in variant.aligned_parameters()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", int(capability), 32), options=options)
    ptx, metadata = compiled.asm["ptx"], compiled.metadata
    entry = parse_entry(ptx)
    _check(variant, [size for size, _ in entry.parameters], inexact_instructions(ptx), metadata)
    image = ptx.encode() if kind == "ptx" else compiled.asm["cubin"]
    file.write_bytes(image)
    registers, stack_bytes = (None, None) if kind == "ptx" else resource_usage(file)
    return Outcome(
        file=file.name,
        arch=entry.arch,
        ptx_version=entry.ptx_version,
        entry=entry.name,
        num_warps=metadata.num_warps,
        shared_bytes=metadata.shared,
        parameter_sizes=tuple(size for size, _ in entry.parameters),
        registers=registers,
        stack_bytes=stack_bytes,
        triton_version=triton.__version__,
    )


def _check(variant: Variant, sizes: list[int], inexact: tuple[str, ...], metadata: Any) -> None:
    if inexact:
        raise ValueError(f"{variant.name}: not the reference's bits: {', '.join(inexact)}")
    wanted = [4 if kind == "i32" else 8 for kind in PARAMETERS[variant.kernel].values()]
    if sizes[: len(wanted)] != wanted or set(sizes[len(wanted) :]) - {8}:
        raise ValueError(f"{variant.name}: parameters have sizes {sizes}, expected {wanted} and then addresses")
    # Triton appends addresses of scratch memory, used or not; none of our kernels needs any, so a launch passes 0.
    scratch = {name: getattr(metadata, name, 0) for name in ("global_scratch_size", "profile_scratch_size")}
    if any(scratch.values()) or metadata.num_ctas != 1 or metadata.num_warps != variant.num_warps:
        raise ValueError(f"{variant.name}: needs {scratch}, {metadata.num_ctas} CTAs, {metadata.num_warps} warps")
    if metadata.shared > MAX_SHARED_BYTES:
        raise ValueError(f"{variant.name}: needs {metadata.shared} bytes of shared memory")


def resource_usage(cubin: Path) -> tuple[int, int]:
    """(registers, stack bytes) per thread of the one kernel in a cubin, by the cuobjdump of Triton's wheel."""
    command = [knobs.nvidia.cuobjdump.path, "-res-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = _USAGE.findall(text)
    if len(found) != 1:
        raise ValueError(f"cuobjdump: expected the usage of one kernel, got {text!r:.300}")
    return int(found[0][0]), int(found[0][1])


def main() -> int:
    """Jobs as JSON lines on stdin, images into the directory of the one argument, outcomes as JSON lines on stdout."""
    directory = Path(sys.argv[1])
    for line in sys.stdin:
        job = codec.from_json(Job, json.loads(line))
        suffix = "ptx" if job.target.startswith("ptx") else "cubin"
        try:
            outcome = codec.to_json(compile_job(job, directory / f"{job.target}-{job.variant.name}.{suffix}"))
        except Exception as error:  # reported by the parent, which knows what the user asked for
            outcome = {"error": f"{type(error).__name__}: {error}"[:2000]}
        print(json.dumps(outcome), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
