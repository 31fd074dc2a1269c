"""Evaluate a student against its teacher: the quality protocol as one call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distill_rt.core.errors import UsageError
from distill_rt.models import Student, load_student
from distill_rt.training.methods import METHODS
from distill_rt.training.quality.baselines import gaussian_fit, naive_tables, untrained
from distill_rt.training.quality.bench import FRESH_SEEDS, QualityBench
from distill_rt.training.quality.gate import Yardstick, verdict
from distill_rt.training.quality.kept_samples import KeptSamples
from distill_rt.training.quality.prompts import asked_prompts, recorded_data

MIN_SAMPLES, MAX_SAMPLES = 200, 1_000_000

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total)."""


def evaluate(
    student: Path,
    teacher: Path,
    *,
    nfe: Sequence[int] | None = None,
    num_samples: int = 2000,
    guidance: float | None = None,
    prompts: Sequence[str] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Measure a student at each number of evaluations, with the naive baselines at the same number of steps.

    Args:
        student, teacher: directories; the teacher is the yardstick.
        nfe: numbers of steps within the student's contract; None is all of them.
        num_samples: per sample set, at least 200.
        guidance: w; None is the student's (`scale_of`).
        prompts: of a student that reads them, given in turn; None are captions of scenes that training never draws.

    Returns:
        A JSON object: ``rows`` (one per number of steps: measures, passed, failures), ``baselines`` and ``floor``;
        ``num_prompts`` that were different.

    Raises:
        UsageError: a number of steps or guidance outside of the contract, another kind of data, or no prompts.
    """
    loaded, reference = load_student(student), load_student(teacher)
    if loaded.spec.sample_shape != reference.spec.sample_shape or loaded.spec.condition != reference.spec.condition:
        raise UsageError(
            f"{student} and {teacher} make different things: {loaded.spec.sample_shape} with {loaded.spec.condition.kind} "
            f"condition and {reference.spec.sample_shape} with {reference.spec.condition.kind} condition",
            code="teacher-mismatch",
            hint="give the teacher that the student was distilled from",
        )
    counts = [loaded.spec.check_steps(n) for n in (nfe or loaded.spec.steps)]
    if loaded.spec.guidance.mode != "none":
        loaded.spec.check_guidance(guidance)
    w = scale_of(loaded, reference) if guidance is None else guidance
    bench = open_bench(reference, num_samples=num_samples, guidance=w, prompts=prompts, seed=seed)
    rows = []
    for index, num_steps in enumerate(counts):
        if progress is not None:
            progress(f"{num_steps} steps", index, len(counts))
        rows.append(evaluate_steps(bench, loaded, num_steps))
    return {
        "student": str(student),
        "teacher": str(teacher),
        "guidance": bench.guidance,
        "num_samples": num_samples,
        **({} if bench.prompts is None else {"num_prompts": len(set(bench.prompts))}),
        "seed": seed,
        "rows": rows,
    }


def check_num_samples(num_samples: int) -> None:
    """Refuse too few to measure anything, and more than memory holds."""
    if not MIN_SAMPLES <= num_samples <= MAX_SAMPLES:
        raise UsageError(
            f"an evaluation needs {MIN_SAMPLES} to {MAX_SAMPLES} samples, got {num_samples}",
            code="num-samples-out-of-range",
        )


def scale_of(student: Student, teacher: Student) -> float | None:
    """The guidance scale of the teacher that a student stands for; None where the teacher has none.

    It is the default of the student's contract. Without guidance as an input that is what it learned: 1 from data alone
    (`ect`), or the scale that was distilled into it (`dice`). Its teacher at another scale makes other images on purpose.
    """
    return None if teacher.spec.guidance.mode == "none" else student.spec.guidance.default


def open_bench(
    teacher: Student,
    *,
    num_samples: int,
    guidance: float | None,
    prompts: Sequence[str] | None = None,
    seed: int,
    kept: KeptSamples | None = None,
) -> QualityBench:
    """The yardstick of a teacher; arguments and errors as of `evaluate`, but no `guidance` is the teacher's default.

    Args:
        kept: where the teacher's own sample sets are looked up and left.
    """
    check_num_samples(num_samples)
    if not 0 <= seed < FRESH_SEEDS // num_samples:
        raise UsageError(
            f"the seed of an evaluation must be 0 to {FRESH_SEEDS // num_samples - 1}, got {seed}",
            code="seed-out-of-range",
        )
    teacher.spec.check_guidance(guidance)
    dataset = recorded_data(teacher)
    asked = asked_prompts(teacher, prompts, num_samples)
    return QualityBench(teacher, dataset, asked=asked, num_samples=num_samples, guidance=guidance, seed=seed, kept=kept)


def evaluate_steps(
    bench: QualityBench, student: Student, num_steps: int, *, baseline_steps: int | None = None
) -> dict[str, Any]:
    """One row: the student at `num_steps`, the baselines at `baseline_steps` (default: as many), and the verdict."""
    yardstick = measure_yardstick(bench, student, num_steps, baseline_steps=baseline_steps)
    measured = bench.measure(bench.student_samples(student, num_steps))
    table = student.spec.plans[num_steps]
    failures = verdict(measured, yardstick, follows_trajectory=claims_pairing(student, num_steps))
    return {
        "nfe": table.num_evaluations,
        "steps": num_steps,
        **dataclasses.asdict(measured),
        "passed": not failures,
        "failures": failures,
        "floor": dataclasses.asdict(yardstick.floor),
        "baselines": {name: dataclasses.asdict(m) for name, m in yardstick.baselines.items()},
    }


def claims_pairing(student: Student, num_steps: int) -> bool:
    """Whether this plan claims the teacher's image for the same noise: a deterministic one (a single evaluation of any is) of a
    method that follows trajectories."""
    method = METHODS.get(str(student.spec.provenance.get("method")))
    follows = method is None or method.follows_trajectory
    return follows and not student.spec.plans[num_steps].is_stochastic


def measure_yardstick(
    bench: QualityBench, student: Student, num_steps: int, *, baseline_steps: int | None = None
) -> Yardstick:
    """Floor, Gaussian fit and all baselines for a student at `num_steps`."""
    gaussian = bench.measure_once("gaussian fit", 0, lambda: gaussian_fit(bench))
    steps = baseline_steps or num_steps
    baselines = {
        name: bench.measure_once(name, steps, partial(bench.teacher_samples, table))
        for name, table in naive_tables(bench, steps).items()
    }
    baselines["gaussian fit"] = gaussian
    baselines["untrained student"] = bench.measure(untrained(bench, student, num_steps))
    return Yardstick(floor=bench.floor, gaussian=gaussian, baselines=baselines)
