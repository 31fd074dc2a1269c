"""``make quality``: every method against its teacher, two seeds, with the controls that must fail.

    python benchmarks/quality.py --out benchmarks/results/quality.json --table docs/methods.md --plot docs/quality.svg
    METHODS=progressive,consistency python benchmarks/quality.py ...        # a subset; also --datasets, --seeds

Writes rows {method, dataset, nfe, seed, measures..., passed, failures}, controls included, beside those that the file has of
other runs; the table in docs/methods.md and the plot are made of all of them. Resumable: teachers and their sample sets,
students and finished rows are kept in --work, a second call goes on; --missing passes over students whose rows --out holds,
from any work directory. Every student has one thread; --jobs students train at a time.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import multiprocessing
import os
import platform
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))  # PYTHONSAFEPATH leaves it out

from quality_report import plot, write_table

from distill_rt.models import Student, load_student
from distill_rt.training.evaluate import claims_pairing, measure_yardstick, open_bench, scale_of
from distill_rt.training.quality.baselines import CONTROLS, SAME_FOR_ALL
from distill_rt.training.quality.bench import QualityBench
from distill_rt.training.quality.gate import verdict
from distill_rt.training.quality.kept_samples import KeptSamples
from distill_rt.training.run import distill, train


@dataclass(frozen=True, kw_only=True)
class Run:
    """One student: `nfe` are the plans that are measured, baselines run `nfe // baseline_divisor` steps."""

    method: str
    dataset: str
    steps: int
    nfe: tuple[int, ...]
    settings: dict[str, str] = field(default_factory=dict)
    variant: str = ""
    baseline_divisor: int = 1

    @property
    def label(self) -> str:
        return f"{self.method}{'-' + self.variant if self.variant else ''}"

    @property
    def key(self) -> str:
        return f"{self.label}-{self.dataset}-{self.steps}"


@dataclass(frozen=True, kw_only=True)
class Offer:
    """What a method can be asked for: one student for every entry of `students`, (steps, plans that are measured)."""

    method: str
    students: tuple[tuple[int, tuple[int, ...]], ...]
    settings: dict[str, str] = field(default_factory=dict)
    variant: str = ""
    datasets: tuple[str, ...] = ("grid25", "digits")

    def runs(self, dataset: str) -> Iterator[Run]:
        if dataset not in self.datasets:
            return
        for steps, nfe in self.students:
            # A UNet on digits costs many times the points' network: fewer iterations keep a student within 4 minutes.
            keys = (self.method, f"{self.method}-{steps}") if dataset == "digits" else ()
            budget = {name: value for key in keys for name, value in DIGITS_SETTINGS.get(key, {}).items()}
            yield Run(
                method=self.method,
                dataset=dataset,
                steps=steps,
                nfe=nfe,
                settings={**self.settings, **budget},
                variant=self.variant,
            )


ONE = ((1, (1,)),)
EACH = ((4, (4,)), (2, (2,)), (1, (1,)))
ALL = ((4, (1, 2, 4)),)
OFFERS = (
    Offer(method="progressive", students=EACH),
    Offer(method="rcfd", students=EACH, datasets=("digits",)),
    Offer(method="consistency", students=ALL),
    Offer(method="consistency", students=ALL, settings={"pairs": "ect"}, variant="ect"),
    Offer(method="kd", students=ONE),
    Offer(method="tract", students=EACH),
    Offer(method="rectified_flow", students=ALL),
    Offer(method="consistency_training", students=ALL),
    Offer(method="ect", students=ALL),
    Offer(method="sfd", students=EACH[:2]),
    # One step has one time.
    Offer(method="gits", students=EACH[:2]),
    Offer(method="gits", students=EACH[:2], settings={"power": "2"}, variant="squares"),
    # Points have two elements each, so they need more trajectories.
    Offer(method="bespoke", students=EACH, settings={"batch_size": "2048"}),
    Offer(method="boot", students=ONE),
    Offer(method="lcm", students=ALL),
    Offer(method="pcm", students=EACH[:2]),
    Offer(method="tcd", students=EACH[:1]),
    Offer(method="ctm", students=ALL),
    Offer(method="shortcut", students=ALL),
    Offer(method="catch_up", students=EACH),
    Offer(method="imm", students=ALL),
    Offer(method="meanflow", students=ALL),
    Offer(method="scm", students=ALL),
    Offer(method="rcm", students=ALL),
    Offer(method="dmd", students=ONE),
    Offer(method="vsd", students=ONE),
    Offer(method="sid", students=ONE),
    Offer(method="dmd2", students=EACH[:1]),
    Offer(method="tdm", students=EACH),
    Offer(method="ladd", students=ALL),
)
"""Methods in the order of their files' families; the same students on both data sets, if there are labels for `rcfd`."""
DIGITS_SETTINGS: dict[str, dict[str, str]] = {
    "guidance": {"iterations": "1500"},
    "progressive-1": {"last_iterations": "600"},
    "consistency": {"plan_power": "3"},
    "kd": {"iterations": "1200", "num_pairs": "3072"},
    "tract": {"guidance_iterations": "200", "first_iterations": "200", "iterations": "400"},
    # Its target (and rcfd's) is the teacher's DDIM map; that of 8 steps, the default for one, has a recall at the bar itself.
    "tract-1": {"start_steps": "32", "middle_ratio": "4", "first_iterations": "300", "iterations": "500"},
    "rectified_flow": {"iterations": "1200", "num_pairs": "3072"},
    "consistency_training": {"iterations": "1200"},
    "ect": {"iterations": "1200"},
    "rcfd-1": {"start_steps": "32", "stage_iterations": "150"},
    "sfd": {"iterations": "150"},
    "bespoke": {"batch_size": "128"},
    "boot": {"iterations": "700"},
    "lcm": {"iterations": "900"},
    "pcm": {"iterations": "700"},
    "tcd": {"iterations": "700"},
    "ctm": {"iterations": "500"},
    "shortcut": {"iterations": "800"},
    "catch_up": {"iterations": "800"},
    "imm": {"iterations": "1300"},
    "dmd": {"iterations": "700", "num_pairs": "2048", "level_power": "2", "score_steps": "4"},
    "vsd": {"iterations": "700"},
    "sid": {"iterations": "600", "start": "1"},
    "dmd2": {"iterations": "800"},
    "meanflow": {"iterations": "700"},
    "scm": {"iterations": "500", "plan_power": "3"},
    "rcm": {"iterations": "350", "level_power": "2", "score_steps": "4"},
    "tdm": {"iterations": "500"},
    "ladd": {
        "iterations": "600",
        "num_pairs": "2048",
        "peak_learning_rate": "1e-4",
        "judge_rate": "20",
        "judge_warmup": "40",
    },
}
"""Settings of a method on digits, and of its students of one number of steps."""
RUNS = (
    *(run for offer in OFFERS for run in offer.runs("grid25")),
    # Guidance distillation does not take fewer steps, it halves the evaluations: its rivals get the same evaluations.
    *(
        Run(
            method=method,
            dataset=name,
            steps=4,
            nfe=(16,),
            baseline_divisor=2,
            settings=DIGITS_SETTINGS.get(method, {}) if name == "digits" else {},
        )
        for name in ("grid25-labelled", "digits")
        for method in ("guidance", "dice")
    ),
    *(run for offer in OFFERS for run in offer.runs("digits")),
)
NUM_SAMPLES = {"grid25": 4000, "grid25-labelled": 4000, "digits": 2000}
SEEDS = (0, 1)
THREADS = 1
"""Of a student in training, and of its measurements."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--table", type=Path, help="Markdown file whose marked part is replaced by the table")
    parser.add_argument("--plot", type=Path, help="picture of quality against evaluations")
    parser.add_argument("--work", type=Path, default=Path("runs/quality"))
    parser.add_argument("--datasets", nargs="+", choices=NUM_SAMPLES, default=list(NUM_SAMPLES))
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--finished", action="store_true", help="only write what --work holds already, train nothing")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="students at a time")
    parser.add_argument("--missing", action="store_true", help="only the students whose rows --out does not hold yet")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    only = set(filter(None, os.environ.get("METHODS", "").split(",")))
    unknown = only - {run.method for run in RUNS}
    if unknown:
        parser.error(
            f"METHODS names {', '.join(sorted(unknown))}; there are {', '.join(sorted({r.method for r in RUNS}))}"
        )
    chosen = [run for run in RUNS if run.dataset in args.datasets and (not only or run.method in only)]
    todo = [(run, seed) for seed in args.seeds for run in chosen]
    if args.finished:
        todo = [(run, seed) for run, seed in todo if _rows_file(run, seed, args.work).exists()]
    before = json.loads(args.out.read_text())["rows"] if args.out.exists() else []
    if args.missing:
        todo = missing(todo, before)
    rows = _all_rows(todo, args.work, args.jobs)
    measured = {_identity(row) for row in rows}
    rows += [row for row in before if _identity(row) not in measured]
    rows.sort(key=_order)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    result = {
        "rows": rows,
        "machine": _machine(),
        "versions": {n: version(n) for n in ("distill-rt", "torch", "diffusers")},
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    if args.table is not None:
        write_table(args.table, rows)
    if args.plot is not None:
        plot(args.plot, rows)
    controls = [row for row in rows if row["control"]]
    passed_controls = [f"{row['method']} ({row['dataset']})" for row in controls if row["passed"]]
    students = [row for row in rows if not row["control"]]
    passed = sum(row["passed"] for row in students)
    print(f"{passed} of {len(students)} rows pass; {len(controls)} controls, passing: {passed_controls or 'none'}")
    return 1 if passed_controls else 0


def missing(todo: list[tuple[Run, int]], rows: list[dict[str, Any]]) -> list[tuple[Run, int]]:
    """The students of which a plan has no row among `rows`."""
    there = {_identity(row) for row in rows}
    return [(run, seed) for run, seed in todo if {(run.label, run.dataset, n, seed) for n in run.nfe} - there]


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["dataset"], row["nfe"], row["seed"]


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    """Seed, data, then methods as they stand in `RUNS`, controls behind their student."""
    labels = [run.label for run in RUNS]
    name = row["method"].rpartition(" as ")[2]
    position = labels.index(name) if name in labels else len(labels)
    return row["seed"], list(NUM_SAMPLES).index(row["dataset"]), position, name, row["nfe"], row["control"]


def _all_rows(todo: list[tuple[Run, int]], work: Path, jobs: int) -> list[dict[str, Any]]:
    """Rows of all students; those that a worker measures one after the other share a yardstick where they can."""
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker) as pool:
        untaught = sorted({run.dataset for run, seed in todo if not (work / f"{run.dataset}-teacher").exists()})
        list(pool.map(_train_teacher, untaught, [work] * len(untaught)))
        parts = list(pool.map(_rows, *zip(*todo, strict=True), [work] * len(todo))) if todo else []
    return [row for part in parts for row in part]


def _start_worker() -> None:
    torch.set_num_threads(THREADS)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker that trains would not notice that its parent was killed, and go on for hours beside its successor."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _train_teacher(dataset: str, work: Path) -> None:
    _say(f"teacher of {dataset}")
    train(f"{dataset}-teacher", work / f"{dataset}-teacher", resume=True)


def _rows(run: Run, seed: int, work: Path) -> list[dict[str, Any]]:
    """The rows of one student, from the work directory if they are there."""
    done = _rows_file(run, seed, work)
    if not done.exists():
        rows = list(_measure(run, seed, work))
        part = done.with_suffix(".part")
        part.write_text(json.dumps(rows))
        part.replace(done)
    loaded: list[dict[str, Any]] = json.loads(done.read_text())
    return loaded


def _rows_file(run: Run, seed: int, work: Path) -> Path:
    return work / f"{run.key}-seed{seed}.json"


def _measure(run: Run, seed: int, work: Path) -> Iterator[dict[str, Any]]:
    teacher_path, student_path = work / f"{run.dataset}-teacher", work / f"{run.key}-seed{seed}"
    if not student_path.exists():
        start = time.perf_counter()
        distill(run.method, teacher_path, student_path, steps=run.steps, settings=run.settings, seed=seed, resume=True)
        _say(f"{run.key}, seed {seed}: trained in {time.perf_counter() - start:.0f} s")
    student = load_student(student_path)
    bench = _bench(teacher_path, run.dataset, seed, scale_of(student, load_student(teacher_path)))
    for num_steps in run.nfe:
        yield from _measure_plan(run, seed, bench, student, num_steps)


@functools.lru_cache(maxsize=2)  # a guided teacher has two: at its own scale, and at the one of students of data alone
def _bench(teacher: Path, dataset: str, seed: int, guidance: float | None) -> QualityBench:
    kept = KeptSamples(teacher.parent / "samples")
    return open_bench(load_student(teacher), num_samples=NUM_SAMPLES[dataset], guidance=guidance, seed=seed, kept=kept)


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
        if name == "teacher as student" and _has_its_weights(bench, student):
            continue  # nothing was trained: it would be the student itself
        make = functools.partial(control, bench, student, num_steps)
        fake = bench.measure_once(name, 0, make) if name in SAME_FOR_ALL else bench.measure(make())
        reasons = verdict(fake, yardstick, follows_trajectory=follows)
        head = {"method": f"control: {name} as {run.label}", "control": True, **shared}
        yield {**head, **dataclasses.asdict(fake), "passed": not reasons, "failures": reasons}


def _has_its_weights(bench: QualityBench, student: Student) -> bool:
    own, teachers = student.networks[0].state_dict(), bench.teacher.network.state_dict()
    return own.keys() == teachers.keys() and all(torch.equal(value, teachers[key]) for key, value in own.items())


def _machine() -> dict[str, Any]:
    model = next(
        (line.split(":")[1].strip() for line in _cpuinfo() if line.startswith("model name")), platform.processor()
    )
    return {"cpu": model, "threads": THREADS, "python": platform.python_version()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _say(what: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {what}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
