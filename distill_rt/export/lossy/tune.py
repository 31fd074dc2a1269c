"""Step bundle -> trajectory bundle with the lossy passes that earned their place on this machine. No torch."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends import processor
from distill_rt.backends.base import CompileOptions
from distill_rt.backends.registry import AUTO, Target, backend_for, resolve_target
from distill_rt.core import codec
from distill_rt.core.artifacts import BundleBody, Precision
from distill_rt.core.directory import publish, refuse_existing
from distill_rt.core.errors import TargetError, UsageError
from distill_rt.core.lossy_report import LossyReport
from distill_rt.core.manifest import write_manifest
from distill_rt.core.spec import TRAJECTORY, StudentSpec
from distill_rt.export.bundle import Bundle, open_bundle
from distill_rt.export.compile import check_batches
from distill_rt.export.gate import evaluate_rows
from distill_rt.export.golden import GOLDEN_FILE, Golden, TrajectoryGolden, load_golden, save_golden
from distill_rt.export.lossy.candidates import KINDS, Candidate, Student
from distill_rt.export.lossy.measure import Machine, Requests
from distill_rt.export.lossy.search import search
from distill_rt.export.model_file import load_model, save_model
from distill_rt.export.passes import identities
from distill_rt.export.progress import Progress, silent
from distill_rt.export.trajectory_bundle import FILE, trajectory_component
from distill_rt.export.trajectory_gate import trajectory_feeds
from distill_rt.export.trajectory_graph import trajectory_recipe

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]

EXACT_TARGET = "onnxruntime:cpu"
NUM_IMAGES = 16
"""Of each of the three sets: to calibrate, to compare and to confirm."""
FIRST_SEED = 40_000
"""Apart from the seeds of golden outputs."""
SECONDS = 10.0


def tune_bundle(
    bundle: str | Path,
    out: str | Path,
    kinds: Sequence[str] = ("reuse", "todo"),
    *,
    target: str = AUTO,
    steps: int | None = None,
    precision: Precision | None = None,
    batch: int = 1,
    num_threads: int | None = None,
    small: str | Path | None = None,
    seconds: float | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> LossyReport:
    """Try lossy passes on a plan, and write its trajectory bundle with the one that beats the student's own shorter plans.

    Where none does, the bundle is that of ``export --mode trajectory``; the report says what was tried in either case.

    Args:
        bundle: a step bundle; its plans are the alternatives.
        out: the trajectory bundle; must not exist unless `force`.
        kinds: of `KINDS`.
        target, precision, batch, num_threads: what to measure on, as `distill_rt.export.compile.compile_bundle` takes them.
        steps: the plan; None is the contract's default.
        small: step bundle of a smaller network with the same contract, for ``t-stitch``.
        seconds: of timing, about, for the comparison and again for the confirmation; None takes `SECONDS`.
        force: replace what stands at `out`.
        progress: told the stages.

    Raises:
        UsageError: `out` exists, no such kind, plan or target, a batch out of range, `small` without ``t-stitch``, or `bundle`
            is not a step bundle.
        ArtifactError: the bundle is missing, damaged or foreign.
        TargetError: this machine cannot run the target: its times cannot be measured.
    """
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown or not kinds:
        raise UsageError(
            f"there is no lossy pass {unknown[0]!r}" if unknown else "no lossy pass was named",
            code="pass-unknown",
            hint=f"passes: {', '.join(KINDS)}",
        )
    if small is not None and "t-stitch" not in kinds:
        raise UsageError(
            f"{small} is for the pass t-stitch, which was not named",
            code="pass-missing",
            hint="--try reuse,todo,t-stitch",
        )
    out = Path(out)
    refuse_existing(out, force=force, ours="bundle.json")
    check_batches((batch,))
    opened = _step_bundle(bundle)
    spec = opened.body.spec
    plan = spec.check_steps(steps)
    golden = load_golden(opened.directory / opened.body.golden)
    with _machines(target, precision, batch, num_threads) as (exact, machine):
        student = Student(
            spec=spec,
            components=_graphs(opened),
            steps=plan,
            exact=exact,
            target=machine,
            requests=_requests(spec, golden, 0),
            small=_small(small),
        )
        compare, confirm = _requests(spec, golden, 1), _requests(spec, golden, 2)
        found = search(
            student,
            kinds,
            compare=compare,
            confirm=confirm,
            seconds=SECONDS if seconds is None else seconds,
            progress=progress,
        )
        chosen = found.chosen or Candidate(kind="", name="", spec=spec, components=student.components)
        progress("writing the bundle")
        runs = [run for run in golden.trajectories if run.steps == plan]
        if not chosen.corrects and found.chosen is not None:
            runs = _own_images(spec, exact, chosen.model(plan, pixels=False), runs)
        with publish(out, force=force, ours="bundle.json") as directory:
            _write(directory, opened, chosen, plan, runs, found.report)
    return found.report


def _step_bundle(directory: str | Path) -> Bundle:
    opened = open_bundle(directory)
    if opened.body.mode != "step":
        raise UsageError(
            f"{directory} holds the trajectory of {opened.body.steps} steps; there is nothing to compare it with",
            code="bundle-mode",
            hint="give the bundle of all plans: distill-rt export STUDENT --out BUNDLE",
        )
    return opened


def _graphs(bundle: Bundle) -> dict[str, ir.Model]:
    return {name: load_model(bundle.directory / part.file) for name, part in bundle.body.components.items()}


def _small(directory: str | Path | None) -> tuple[StudentSpec, dict[str, ir.Model]] | None:
    if directory is None:
        return None
    opened = _step_bundle(directory)
    return opened.body.spec, _graphs(opened)


@contextlib.contextmanager
def _machines(
    target: str, precision: Precision | None, batch: int, num_threads: int | None
) -> Iterator[tuple[Machine, Machine]]:
    """A machine that computes in float32, and the one that the engine is for."""
    resolved, backend = resolve_target(target)
    reason = backend.cannot_build() or backend.cannot_run()
    if reason is not None:
        raise TargetError(
            f"{resolved} does not run on this machine, so that nothing can be measured: {reason}",
            code="tune-needs-target",
            hint="tune on the machine that shall run it",
        )
    threads = processor.available_cores() if num_threads is None else num_threads
    options = CompileOptions(precision=precision or backend.precisions[0], num_threads=threads)
    backend.check(options)
    exact = backend_for(Target.parse(EXACT_TARGET))
    with tempfile.TemporaryDirectory(prefix="distill-rt-tune-") as scratch:
        folders = [Path(scratch) / name for name in ("exact", "target")]
        for folder in folders:
            folder.mkdir()
        yield (
            Machine(
                backend=exact,
                options=CompileOptions(precision="fp32", num_threads=threads),
                batch=4,
                directory=folders[0],
                target=EXACT_TARGET,
            ),
            Machine(backend=backend, options=options, batch=batch, directory=folders[1], target=str(resolved)),
        )


def _requests(spec: StudentSpec, golden: Golden, number: int) -> Requests:
    """Set `number` of the requests to measure with: own seeds, all labels or golden prompts in turn, default guidance."""
    images = number * NUM_IMAGES + np.arange(NUM_IMAGES)
    labels = tokens = None
    if spec.condition.kind == "label":
        labels = tuple(int(i) % spec.condition.num_classes for i in images)
    if spec.condition.kind == "text":
        known = np.concatenate([run.tokens for run in golden.trajectories if run.tokens is not None])
        tokens = known[images % len(known)]
    return Requests(
        seeds=tuple(FIRST_SEED + int(i) for i in images),
        guidance=spec.guidance.default,
        labels=labels,
        tokens=tokens,
    )


def _own_images(
    spec: StudentSpec, exact: Machine, model: ir.Model, runs: Sequence[TrajectoryGolden]
) -> list[TrajectoryGolden]:
    """Golden trajectories with the images of the graph with its lossy pass: what an engine of it must answer.

    How far these are from the student is in the report; the gate shall find faults of the engine.
    """
    program = exact.trajectory(model, spec, runs[0].steps, pixels=False)
    return [dataclasses.replace(run, images=evaluate_rows(program, trajectory_feeds(spec, run))) for run in runs]


def _write(
    directory: Path,
    source: Bundle,
    chosen: Candidate,
    steps: int,
    runs: Sequence[TrajectoryGolden],
    report: LossyReport,
) -> None:
    body = source.body
    model = chosen.model(steps)
    (directory / FILE).parent.mkdir()
    save_model(model, directory / FILE)
    component = trajectory_component(body.components, body.spec, steps, model)
    if body.tokenizer is not None:
        shutil.copyfile(source.directory / body.tokenizer, directory / body.tokenizer)
    save_golden(directory / GOLDEN_FILE, Golden(components={}, trajectories=tuple(runs)))
    recipe = " ".join([trajectory_recipe(), *identities(chosen.passes)])
    tuned = BundleBody(
        spec=body.spec,
        student_digest=body.student_digest,
        mode="trajectory",
        steps=steps,
        components={TRAJECTORY: component},
        golden=GOLDEN_FILE,
        tokenizer=body.tokenizer,
        versions=body.versions | {"passes": recipe},
        lossy=report,
    )
    write_manifest(directory, "bundle", codec.to_json(tuned))
