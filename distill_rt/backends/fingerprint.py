"""The fingerprint: one hash over everything that decides what an engine computes, and the check that refuses a stranger.

Weights, contract, graph and golden outputs are in the bundle's digest; target, precision, batches, graph rewrites, compiler
version, processor and pinned settings are listed beside it. The parts are stored in the engine, so that a refusal can name
the one that differs.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill_rt.backends import processor
from distill_rt.backends.base import Backend, CompileOptions
from distill_rt.backends.registry import Target, backend_for
from distill_rt.core.artifacts import EngineBody
from distill_rt.core.errors import ArtifactError, TargetError, UsageError

RECIPE = 3
"""Raise it when compiling the same bundle with the same settings starts to give another engine."""


def engine_parts(
    *, bundle_digest: str, target: Target, backend: Backend, batches: Sequence[int], options: CompileOptions
) -> dict[str, Any]:
    """Everything that decides an engine, JSON values; ``machine`` is what this machine contributes."""
    return {
        "bundle": bundle_digest,
        "target": str(target),
        "precision": options.precision,
        "batches": sorted(batches),
        "rewrites": list(backend.rewrites),
        "recipe": RECIPE,
        "machine": backend.fingerprint_parts(options),
    }


def fingerprint(parts: Mapping[str, Any]) -> str:
    """sha256 over the parts in canonical JSON."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_engine(body: EngineBody, directory: Path, options: CompileOptions) -> Backend:
    """Refuse an engine that was not compiled for this machine and these versions; return its backend.

    Args:
        body: what the manifest of `directory` says.
        options: as recorded in the engine.

    Raises:
        ArtifactError: the recorded parts are not those that the fingerprint was made of.
        TargetError: names the first part that differs, and the command that compiles it again.
    """
    parts = body.fingerprint_parts
    recorded = (parts.get("bundle"), parts.get("target"), parts.get("precision"))
    if fingerprint(parts) != body.fingerprint or recorded != (body.bundle_digest, body.target, body.precision):
        raise ArtifactError(
            f"the fingerprint in {directory}/engine.json does not belong to what it lists",
            code="artifact-damaged",
            hint=_rebuild(body, directory),
        )
    backend = _backend_of(body, directory)
    reason = backend.unavailable()
    if reason is not None:
        raise TargetError(
            f"{directory} runs on {body.target}: {reason}",
            code="target-unavailable",
            hint=f"pip install 'distill-rt[{backend.extra}]'",
        )
    reason = backend.cannot_run()
    if reason is not None:
        raise TargetError(
            f"{directory} runs on {body.target}: {reason}",
            code="target-unavailable",
            hint=f"copy it to a machine with {backend.device}; it is whole",
        )
    here = {"rewrites": list(backend.rewrites), "recipe": RECIPE, "machine": backend.fingerprint_parts(options)}
    for name, was, now in differences({key: parts.get(key) for key in here}, here):
        raise TargetError(
            f"{directory} is stale: {_explain(name, was, now)}",
            code="engine-stale",
            hint=_rebuild(body, directory),
            details={"part": name, "engine": was, "here": now},
        )
    return backend


def _backend_of(body: EngineBody, directory: Path) -> Backend:
    try:
        return backend_for(Target.parse(body.target))
    except UsageError as error:
        raise TargetError(
            f"{directory} was compiled for {body.target}, which this distill-rt does not know: {error.message}",
            code="target-unknown",
            hint="compile its bundle for a target of this version",
        ) from error


def differences(was: Any, now: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """(dotted name, was, now) of every part that differs."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in sorted(was.keys() | now.keys()):
            yield from differences(was.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif was != now:
        yield name, was, now


def _explain(name: str, was: Any, now: Any) -> str:
    part = name.removeprefix("machine.")
    if part == "compiler":
        return f"it was compiled with {was}, this is {now}"
    if part == "processor.instruction_sets":
        lacks, gains = sorted(set(was or ()) - set(now)), sorted(set(now) - set(was or ()))
        if lacks:
            return f"it was compiled for a processor with {', '.join(lacks)}, which this one lacks"
        return f"it was compiled for a processor without {', '.join(gains)}, which this one has"
    if part.startswith("processor."):
        return f"it was compiled for {part.removeprefix('processor.')} {was}, this is {now}"
    return f"it was compiled with {part} {was}, this distill-rt uses {now}"


def _rebuild(body: EngineBody, directory: Path) -> str:
    """The command that compiles the same engine again; what is the default of every machine is left out."""
    words = ["distill-rt compile BUNDLE --target", body.target]
    if body.precision != "fp32":
        words.append(f"--precision {body.precision}")
    if body.batches != (1,):
        words.append(f"--batch {','.join(map(str, body.batches))}")
    threads = body.options.get("num_threads", 1)
    if threads < processor.available_cores():  # more were the default of a larger machine
        words.append(f"--threads {threads}")
    if body.options.get("refittable"):
        words.append("--refittable")
    return f"compile it again: {' '.join(words)} --out {shlex.quote(str(directory))} --force"
