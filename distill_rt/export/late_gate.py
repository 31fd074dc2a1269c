"""The gate of an engine that was built on a machine which could not run it: on the target, once, before anybody generates.

The engine carries the golden outputs for it. If it passes, the directory is published again with the report in its manifest;
if not, it stays as it was, and still nothing loads it. No torch, and nothing of the bundle is needed.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from distill_rt.backends.engine import open_engine
from distill_rt.core import codec
from distill_rt.core.artifacts import GateReport
from distill_rt.core.directory import publish
from distill_rt.core.errors import UsageError
from distill_rt.core.manifest import read_manifest, write_manifest
from distill_rt.export.golden import load_golden
from distill_rt.export.progress import Progress, silent
from distill_rt.export.trajectory_gate import gate_engine


def run_late_gate(directory: str | Path, *, progress: Progress = silent) -> GateReport:
    """Run the gate of an engine on this machine, and record the report in the engine.

    An engine whose gate has run is gated again if it still carries golden outputs: after it was copied to another machine.

    Raises:
        ArtifactError: missing, damaged or foreign.
        TargetError: compiled for another machine.
        UsageError: its gate ran when it was compiled, and it carries no golden outputs.
        GateError: too far from the student; the engine is as before.
        ResourceError: the disk is full or not writable.
    """
    directory = Path(directory)
    progress("verifying the engine")
    engine = open_engine(directory, ungated=True)
    body = engine.body
    if body.golden is None:
        raise UsageError(
            f"{directory} passed its gate where it was compiled, and carries no golden outputs to run it again",
            code="gate-ran-already",
            hint="compile it again to run the gate again",
        )
    gate = gate_engine(
        body.spec,
        body.steps,
        load_golden(directory / body.golden),
        engine.load,
        precision=body.precision,
        batches=body.batches,
        device=engine.backend.machine(),
        joined=engine.backend.joins_batches,
        progress=progress,
    )
    with publish(directory, force=True, ours="engine.json") as fresh:
        for entry in read_manifest(directory, "engine").files:
            target = fresh / entry.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(directory / entry.path, target)
        write_manifest(fresh, "engine", codec.to_json(dataclasses.replace(body, gate=gate)))
    return gate
