"""``make quality``: every method against its teacher, two seeds, with the controls that must fail.

    python benchmarks/quality.py --out benchmarks/results/quality.json --table docs/methods.md
    METHODS=progressive,consistency python benchmarks/quality.py ...        # a subset

Writes a list of rows {method, dataset, nfe, seed, measures..., passed, failures}, controls included, and the table in
docs/methods.md. Resumable: teachers, students and finished rows are kept in --work, a second call goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from distill_rt.models import Student, load_student
from distill_rt.training.evaluate import claims_pairing, measure_yardstick, open_bench
from distill_rt.training.quality.baselines import CONTROLS
from distill_rt.training.quality.bench import QualityBench
from distill_rt.training.quality.gate import verdict
from distill_rt.training.run import distill, train

BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"


@dataclass(frozen=True, kw_only=True)
class Run:
    """One student: `nfe` are the plans that are measured, baselines run `nfe // baseline_divisor` steps."""

    method: str
    dataset: str
    steps: int
    nfe: tuple[int, ...]
    settings: dict[str, str] = field(default_factory=dict)
    variant: str = ""
    # Guidance distillation does not take fewer steps, it halves the evaluations: its rivals get the same evaluations.
    baseline_divisor: int = 1

    @property
    def label(self) -> str:
        return f"{self.method}{'-' + self.variant if self.variant else ''}"

    @property
    def key(self) -> str:
        return f"{self.label}-{self.dataset}-{self.steps}"


RUNS = (
    *(Run(method="progressive", dataset="grid25", steps=n, nfe=(n,)) for n in (4, 2, 1)),
    Run(method="consistency", dataset="grid25", steps=4, nfe=(1, 2, 4)),
    Run(method="consistency", dataset="grid25", steps=4, nfe=(1, 2, 4), settings={"pairs": "ect"}, variant="ect"),
    Run(method="kd", dataset="grid25", steps=1, nfe=(1,)),
    *(Run(method="tract", dataset="grid25", steps=n, nfe=(n,)) for n in (4, 2, 1)),
    Run(method="rectified_flow", dataset="grid25", steps=4, nfe=(1, 2, 4)),
    Run(method="consistency_training", dataset="grid25", steps=4, nfe=(1, 2, 4)),
    Run(method="ect", dataset="grid25", steps=4, nfe=(1, 2, 4)),
    *(Run(method="sfd", dataset="grid25", steps=n, nfe=(n,)) for n in (4, 2)),
    Run(method="boot", dataset="grid25", steps=1, nfe=(1,)),
    Run(method="lcm", dataset="grid25", steps=4, nfe=(1, 2, 4)),
    *(Run(method="pcm", dataset="grid25", steps=n, nfe=(n,)) for n in (4, 2)),
    Run(method="tcd", dataset="grid25", steps=4, nfe=(4,)),
    Run(method="ctm", dataset="grid25", steps=4, nfe=(1, 2, 4)),
    Run(method="shortcut", dataset="grid25", steps=4, nfe=(1, 2, 4)),
    Run(method="imm", dataset="grid25", steps=4, nfe=(1, 2, 4)),
    *(Run(method=m, dataset="grid25", steps=1, nfe=(1,)) for m in ("dmd", "vsd", "sid")),
    Run(method="dmd2", dataset="grid25", steps=4, nfe=(4,)),
    Run(method="guidance", dataset="grid25-labelled", steps=4, nfe=(16,), baseline_divisor=2),
    Run(method="progressive", dataset="digits", steps=4, nfe=(4,)),
    Run(method="consistency", dataset="digits", steps=4, nfe=(1, 2, 4)),
    Run(method="guidance", dataset="digits", steps=4, nfe=(16,), baseline_divisor=2),
)
NUM_SAMPLES = {"digits": 2000, "grid25": 4000, "grid25-labelled": 4000}
SEEDS = (0, 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="Markdown file whose marked part is replaced by the table")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    only = set(filter(None, os.environ.get("METHODS", "").split(",")))
    chosen = [run for run in RUNS if not only or run.method in only]
    rows = [row for seed in SEEDS for run in chosen for row in _rows(run, seed, args.work)]
    if only and args.out.exists():
        rows += [row for row in json.loads(args.out.read_text())["rows"] if row["method"].partition("-")[0] not in only]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "rows": rows,
        "machine": _machine(),
        "versions": {n: version(n) for n in ("distill-rt", "torch", "diffusers")},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.table is not None:
        _write_table(args.table, rows)
    controls = [row for row in rows if row["control"]]
    passed_controls = [f"{row['method']} ({row['dataset']})" for row in controls if row["passed"]]
    students = [row for row in rows if not row["control"]]
    passed = sum(row["passed"] for row in students)
    print(f"{passed} of {len(students)} rows pass; {len(controls)} controls, passing: {passed_controls or 'none'}")
    return 1 if passed_controls else 0


def _rows(run: Run, seed: int, work: Path) -> list[dict[str, Any]]:
    """The rows of one student, from the work directory if they are there."""
    done = work / f"{run.key}-seed{seed}.json"
    if not done.exists():
        rows = list(_measure(run, seed, work))
        done.write_text(json.dumps(rows))
    loaded: list[dict[str, Any]] = json.loads(done.read_text())
    return loaded


def _measure(run: Run, seed: int, work: Path) -> Iterator[dict[str, Any]]:
    teacher_path, student_path = work / f"{run.dataset}-teacher", work / f"{run.key}-seed{seed}"
    if not teacher_path.exists():
        _say(f"teacher of {run.dataset}")
        train(f"{run.dataset}-teacher", teacher_path, resume=True)
    if not student_path.exists():
        _say(f"{run.key}, seed {seed}")
        distill(run.method, teacher_path, student_path, steps=run.steps, settings=run.settings, seed=seed, resume=True)
    teacher, student = load_student(teacher_path), load_student(student_path)
    bench = open_bench(teacher, num_samples=NUM_SAMPLES[run.dataset], guidance=None, seed=seed)
    for num_steps in run.nfe:
        yield from _measure_plan(run, seed, bench, student, num_steps)


def _measure_plan(
    run: Run, seed: int, bench: QualityBench, student: Student, num_steps: int
) -> Iterator[dict[str, Any]]:
    yardstick = measure_yardstick(bench, student, num_steps, baseline_steps=num_steps // run.baseline_divisor)
    table = student.spec.plans[num_steps]
    follows = claims_pairing(student, num_steps)
    shared = {"dataset": run.dataset, "nfe": table.num_evaluations, "seed": seed}
    measured = bench.measure(bench.student_samples(student, num_steps))
    failures = verdict(measured, yardstick, follows_trajectory=follows)
    yield {
        "method": run.label,
        "control": False,
        **shared,
        **dataclasses.asdict(measured),
        "passed": not failures,
        "failures": failures,
        "floor": dataclasses.asdict(yardstick.floor),
        "baselines": {name: dataclasses.asdict(m) for name, m in yardstick.baselines.items()},
    }
    for name, control in CONTROLS.items():
        fake = bench.measure(control(bench, student, num_steps))
        reasons = verdict(fake, yardstick, follows_trajectory=follows)
        head = {"method": f"control: {name} as {run.label}", "control": True, **shared}
        yield {**head, **dataclasses.asdict(fake), "passed": not reasons, "failures": reasons}


def _write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Replace what stands between the markers of a Markdown file."""
    head = "| method | data | NFE | seed | passed | c2st (floor, best naive) | energy (floor) | recall | swd | labels right |\n"
    lines = [head + "|---|---|---|---|---|---|---|---|---|---|"]
    for row in rows:
        if row["control"]:
            continue
        best = min(m["c2st"] for m in row["baselines"].values())
        labels = (
            ""
            if row["label_accuracy"] is None
            else f"{row['label_accuracy']:.3f} ({row['floor']['label_accuracy']:.3f})"
        )
        verdict_ = "yes" if row["passed"] else f"below bar: {', '.join(row['failures'])}"
        floor = row["floor"]
        cells = [row["method"], row["dataset"], row["nfe"], row["seed"], verdict_]
        cells += [
            f"{row['c2st']:.3f} ({floor['c2st']:.3f}, {best:.3f})",
            f"{row['energy']:.3f} ({floor['energy']:.3f})",
        ]
        cells += [f"{row['recall']:.3f}", f"{row['swd']:.3f}", labels]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    failed = sum(not row["passed"] for row in rows if row["control"])
    lines.append(f"\nNegative controls: {failed} of {sum(row['control'] for row in rows)} fail, as they must.")
    text = path.read_text()
    before, rest = text.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    path.write_text(f"{before}{BEGIN}\n" + "\n".join(lines) + f"\n{END}{after}")


def _machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {"cpu": model, "threads": torch.get_num_threads(), "python": platform.python_version()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
