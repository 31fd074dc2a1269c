"""The handmade bundle as a trajectory: what exporting a student with ``mode="trajectory"`` makes, without torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from handmade import GuidanceMode, write_bundle

from distill_rt.core import codec
from distill_rt.core.manifest import write_manifest
from distill_rt.export.bundle import open_bundle
from distill_rt.export.golden import Golden, load_golden, save_golden
from distill_rt.export.trajectory_bundle import join_components

STEPS = 4


def trajectory_bundle(
    path: Path,
    guidance: GuidanceMode = "embedded",
    edit_golden: Callable[[Golden], Golden] = lambda golden: golden,
    *,
    limit_bytes: int = 1 << 30,
) -> Path:
    """A bundle of `handmade` with one plan of `STEPS` steps."""
    step = open_bundle(write_bundle(path, guidance))
    golden = load_golden(path / step.body.golden)
    runs = tuple(run for run in golden.trajectories if run.steps == STEPS)
    components = join_components(path, step.body.components, step.body.spec, runs, single_file_limit_bytes=limit_bytes)
    save_golden(path / step.body.golden, edit_golden(Golden(components={}, trajectories=runs)))
    body = dataclasses.replace(step.body, mode="trajectory", steps=STEPS, components=components)
    (path / "bundle.json").unlink()
    write_manifest(path, "bundle", codec.to_json(body))
    return path
