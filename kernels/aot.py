"""Builds kernel packs: every variant for every capability, ahead of time, on a machine without a GPU.

Triton compiles in processes of their own (`distill_rt.kernels.triton.compile`), so that nothing of it, nor its settings,
enters this one. Triton keeps its usual cache (TRITON_CACHE_DIR, else ~/.triton/cache), so a second build takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from distill_rt.core import codec, noise
from distill_rt.core.directory import publish
from distill_rt.core.errors import TargetError, UsageError
from distill_rt.core.listing import FileEntry
from distill_rt.core.optional import installed
from distill_rt.kernels import triton as kernel_sources
from distill_rt.kernels.pack import (
    MANIFEST,
    Image,
    KernelPack,
    PackBody,
    PackedKernel,
    Parameter,
    read_pack,
    write_manifest,
)
from distill_rt.kernels.triton.variants import PARAMETERS, Variant

CAPABILITIES = (75, 80, 86, 89, 90, 100, 120)
PTX_TARGET = "ptx_80"
"""Runs on every capability from 8.0 on, future ones included."""

_WORKER = "distill_rt.kernels.triton.compile"


def build_pack(
    out_dir: str | Path,
    variants: Sequence[Variant],
    *,
    capabilities: Sequence[int] = CAPABILITIES,
    with_ptx: bool = True,
    num_processes: int = 2,
    force: bool = False,
) -> KernelPack:
    """Compile and publish a pack.

    Args:
        out_dir: directory of the pack; must not exist unless `force`.
        variants: what to compile, see `distill_rt.kernels.triton.variants.default_variants`.
        capabilities: compute capabilities, 90 for 9.0, each of which gets cubins.
        with_ptx: also PTX for all the others from 8.0 on.
        num_processes: compilers side by side.

    Raises:
        UsageError: nothing to compile, or `out_dir` exists.
        TargetError: triton is missing, or its version cannot compile a variant.
    """
    targets = tuple(f"sm_{c}" for c in dict.fromkeys(capabilities)) + ((PTX_TARGET,) if with_ptx else ())
    if not variants or not targets:
        raise UsageError("a kernel pack needs at least one variant and one target", code="kernel-pack-empty")
    if not installed("triton"):
        raise TargetError(
            "compiling kernels needs the package 'triton', which is not installed",
            code="package-missing",
            hint="pip install triton (Linux)",
            details={"package": "triton"},
        )
    out_dir = Path(out_dir)
    with publish(out_dir, force=force, ours=MANIFEST) as partial:
        jobs = [{"variant": codec.to_json(variant), "target": target} for variant in variants for target in targets]
        outcomes = _compile(jobs, partial, max(1, min(num_processes, len(jobs))))
        kernels = {
            variant.name: _packed(variant, dict(zip(targets, outcomes[i * len(targets) :], strict=False)), partial)
            for i, variant in enumerate(variants)
        }
        body = PackBody(
            triton_version=outcomes[0]["triton_version"],
            source_sha256=source_digest(),
            targets=targets,
            kernels=kernels,
        )
        write_manifest(partial, body)
    return read_pack(out_dir)


def source_digest() -> str:
    """sha256 over everything that the kernels are made of: their sources, and the noise's constants."""
    digest = hashlib.sha256()
    (folder,) = {Path(file).parent for file in [str(kernel_sources.__file__)]}
    for path in [*sorted(folder.glob("*.py")), Path(str(noise.__file__))]:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def _compile(jobs: list[dict[str, Any]], directory: Path, num_processes: int) -> list[dict[str, Any]]:
    """Outcomes in the order of the jobs; each process takes every num_processes-th one."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_DISABLE_LINE_INFO": "1", "PYTHONSAFEPATH": "1"}
    shares = [jobs[i::num_processes] for i in range(num_processes)]
    with tempfile.TemporaryFile("w+") as log:
        with _started([sys.executable, "-m", _WORKER, str(directory)], shares, environment, log) as processes:
            texts = [process.communicate()[0] for process in processes]
        log.seek(0)
        said = log.read()[-500:].strip()
    results = [[json.loads(line) for line in text.splitlines()] for text in texts]
    outcomes: list[dict[str, Any]] = []
    for i, job in enumerate(jobs):
        share = results[i % num_processes]
        outcome = (
            share[i // num_processes] if i // num_processes < len(share) else {"error": f"the compiler died: {said}"}
        )
        if "error" in outcome:
            name = Variant(**{**job["variant"], "features": tuple(map(tuple, job["variant"]["features"]))}).name
            raise TargetError(
                f"kernel {name} cannot be compiled for {job['target']}: {outcome['error']}",
                code="kernel-compile",
                hint="install another version of triton (3.4, 3.6 and 3.9 are known to work)",
            )
        outcomes.append(outcome)
    return outcomes


@contextmanager
def _started(
    command: list[str], shares: list[list[dict[str, Any]]], environment: dict[str, str], log: Any
) -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    try:
        for share in shares:
            with tempfile.TemporaryFile("w+") as jobs:
                jobs.write("".join(json.dumps(job) + "\n" for job in share))
                jobs.seek(0)
                processes.append(
                    subprocess.Popen(
                        command, stdin=jobs, stdout=subprocess.PIPE, stderr=log, env=environment, text=True
                    )
                )
        yield processes
    finally:
        for process in processes:
            process.kill()  # after an exception only; a process that ended takes no notice
            process.wait()


def _packed(variant: Variant, outcomes: dict[str, dict[str, Any]], directory: Path) -> PackedKernel:
    declared = list(PARAMETERS[variant.kernel].items())
    images, sizes = {}, set()
    for target, outcome in outcomes.items():
        data = (directory / outcome["file"]).read_bytes()
        entry = FileEntry(path=outcome["file"], size=len(data), sha256=hashlib.sha256(data).hexdigest())
        images[target] = Image(
            file=entry,
            **{name: outcome[name] for name in ("arch", "entry", "shared_bytes", "registers", "stack_bytes")},
        )
        sizes.add(tuple(outcome["parameter_sizes"]))
    (all_sizes,) = sizes  # one Triton appends the same parameters for every target
    parameters = [
        Parameter(name=name, kind="integer" if kind in ("i32", "i64") else "pointer", size_bytes=size)
        for (name, kind), size in zip(declared, all_sizes, strict=False)
    ]
    parameters += [
        Parameter(name=f"scratch{i}", kind="hidden", size_bytes=size)
        for i, size in enumerate(all_sizes[len(declared) :])
    ]
    return PackedKernel(
        kernel=variant.kernel,
        state=variant.state,
        network=variant.network,
        features=dict(variant.features),
        aligned=variant.aligned,
        block=variant.block,
        num_warps=variant.num_warps,
        per_image=variant.per_image,
        parameters=tuple(parameters),
        images=images,
    )
