"""The whole walk on real data: train a teacher on handwritten digits, distil it to 4 steps, export, compile, generate, report.

Leaves OUT/teacher, OUT/student, OUT/digits.bundle, OUT/digits.engine, OUT/grid.png, OUT/report.html and OUT/report.json.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distill_rt.cli.outcome import Outcome, pairs
from distill_rt.cli.parser import add_force

if TYPE_CHECKING:
    from distill_rt.cli.progress import Progress

EXTRA = "dev"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("demo"), help="directory to fill (default: demo)")
    parser.add_argument("--target", default="auto", help="what to compile for (default: the best of this machine)")
    parser.add_argument("--seed", type=int, default=0, help="of training and of the images (default: 0)")
    parser.add_argument("--num-samples", type=int, default=600, help="per sample set of the evaluation (default: 600)")
    parser.add_argument("--effort", type=float, default=1.0, help="share of the training steps (default: 1)")
    add_force(parser, "the demo that stands at --out")


def run(args: argparse.Namespace) -> Outcome:
    from distill_rt.backends.registry import resolve_target
    from distill_rt.cli.progress import progress_bar
    from distill_rt.core.directory import resource_errors
    from distill_rt.core.errors import UsageError
    from distill_rt.training.config import check_seed
    from distill_rt.training.evaluate import check_num_samples

    if not 0 < args.effort <= 100:
        raise UsageError(f"--effort must be above 0 and at most 100, got {args.effort}", code="setting-invalid")
    check_seed(args.seed)
    check_num_samples(args.num_samples)
    resolve_target(args.target)

    started = time.monotonic()
    paths = {name: args.out / name for name in ("teacher", "student", "digits.bundle", "digits.engine")}
    with resource_errors(args.out):
        _clear(args.out, force=args.force)
        args.out.mkdir(parents=True, exist_ok=True)
    with progress_bar() as progress:
        report = _walk(args, paths, progress)
    report["seconds"] = round(time.monotonic() - started, 1)
    _write(args.out, report)
    return Outcome(data=_for_json(report), text=_text(args.out, paths, report))


def _clear(out: Path, *, force: bool) -> None:
    """Remove what an earlier demo left; refuse a directory that holds anything else."""
    import shutil

    from distill_rt.core.directory import refuse_existing
    from distill_rt.core.errors import UsageError

    refuse_existing(out, force=force)
    ours = {"teacher", "student", "digits.bundle", "digits.engine", "grid.png", "report.html", "report.json"}
    ours |= {f"{name}.checkpoint" for name in ours}
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if found - ours:
        raise UsageError(
            f"{out} holds more than a demo: {', '.join(sorted(found - ours)[:3])}",
            code="output-not-a-demo",
            hint="choose another --out",
        )
    for name in found:
        path = out / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _walk(args: argparse.Namespace, paths: dict[str, Path], progress: Progress) -> dict[str, Any]:
    from distill_rt.bench import bench_engine
    from distill_rt.cli.demo_grid import sample_rows
    from distill_rt.export import compile_bundle, export_student
    from distill_rt.training.evaluate import evaluate
    from distill_rt.training.methods import Progressive
    from distill_rt.training.recipes import RECIPES
    from distill_rt.training.run import distill, train

    stages: dict[str, float] = {}

    def timed(name: str, since: float) -> None:
        stages[name] = round(time.monotonic() - since, 1)

    t = time.monotonic()
    teacher = train(
        "digits-teacher",
        paths["teacher"],
        seed=args.seed,
        settings=_scaled(RECIPES["digits-teacher"]().method, ("steps",), args.effort),
        progress=lambda phase, done, total, loss: progress("teacher", done, total, loss),
    )
    timed("train the teacher", t)
    t = time.monotonic()
    student = distill(
        "progressive",
        paths["teacher"],
        paths["student"],
        steps=4,
        seed=args.seed,
        settings=_scaled(Progressive(), ("guidance_iterations", "stage_iterations", "last_iterations"), args.effort),
        progress=lambda phase, done, total, loss: progress("student", done, total, loss),
    )
    timed("distil to 4 steps", t)
    t = time.monotonic()
    progress("export", 0, 0)
    export_student(paths["student"], paths["digits.bundle"])
    timed("export", t)
    t = time.monotonic()
    progress("compile and gate", 0, 0)
    compile_bundle(paths["digits.bundle"], args.target, paths["digits.engine"], batches=(1, 4, 16))
    timed("compile and gate", t)
    t = time.monotonic()
    progress("quality", 0, 0)
    quality = evaluate(paths["student"], paths["teacher"], num_samples=args.num_samples, seed=args.seed)
    rows = sample_rows(paths["teacher"], paths["digits.engine"], seed=args.seed)
    timed("measure quality", t)
    t = time.monotonic()
    progress("latency", 0, 0)
    latency = bench_engine(paths["digits.engine"]).to_json()
    timed("measure latency", t)
    return {
        "teacher": teacher,
        "student": student,
        "quality": quality,
        "latency": latency,
        "stages_s": stages,
        "rows": rows,
        "curves": {name: _losses(paths[name]) for name in ("teacher", "student")},
        "engine": _engine(paths["digits.engine"]),
    }


def _scaled(method: Any, names: tuple[str, ...], effort: float) -> dict[str, str]:
    """Settings that shorten (or lengthen) a method's training."""
    return {name: str(max(1, round(getattr(method, name) * effort))) for name in names}


def _losses(directory: Path) -> list[list[float]]:
    from distill_rt.core.manifest import read_manifest

    losses: list[list[float]] = read_manifest(directory, "student").body["spec"]["provenance"]["losses"]
    return losses


def _engine(directory: Path) -> dict[str, Any]:
    from distill_rt.core.manifest import read_manifest

    body = read_manifest(directory, "engine").body
    return {key: body[key] for key in ("target", "precision", "fingerprint", "batches", "gate", "build_seconds")}


def _write(out: Path, report: dict[str, Any]) -> None:
    from distill_rt.cli.demo_grid import draw_grid
    from distill_rt.cli.demo_report import write_html
    from distill_rt.core.directory import resource_errors

    with resource_errors(out):
        draw_grid(out / "grid.png", report["rows"])
        write_html(out / "report.html", report, grid=out / "grid.png")
        partial = out / ".report.json.partial"
        partial.write_text(json.dumps(_for_json(report), indent=1) + "\n")
        os.replace(partial, out / "report.json")


def _for_json(report: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in report.items() if key not in ("rows", "curves")}


def _text(out: Path, paths: dict[str, Path], report: dict[str, Any]) -> str:
    row = report["quality"]["rows"][0]
    best = min(measured["c2st"] for measured in row["baselines"].values())
    verdict = "passed" if row["passed"] else f"BELOW THE BAR: {', '.join(row['failures'])}"
    median_ms = report["latency"]["runs"][0]["latency_ms"]["p50"]
    figures = {
        "quality": f"labels right {row['label_accuracy']:.1%} (teacher {row['floor']['label_accuracy']:.1%}); told from the "
        f"teacher's images {row['c2st']:.1%} of the time (floor {row['floor']['c2st']:.1%}, best naive {best:.1%}): {verdict}",
        "latency": f"{median_ms:.2f} ms for one image of 4 steps on {report['engine']['target']}",
        "time": f"{report['seconds']:.0f} s in all",
        "look at": f"{out / 'grid.png'} and {out / 'report.html'}",
    }
    engine, bundle = paths["digits.engine"], paths["digits.bundle"]
    commands = [
        f"distill-rt generate {engine} --label 3 --seed 7 --num-images 16 --out threes.png",
        f"distill-rt bench {engine} --plot latency.png",
        f"distill-rt inspect {engine}",
        f"distill-rt compile {bundle} --target onnxruntime:cpu --out other.engine",
        f"distill-rt distill consistency --teacher {paths['teacher']} --steps 4 --out runs/consistency",
    ]
    return "\n".join([pairs(figures), "", "Go on with:", *(f"  {command}" for command in commands)])
