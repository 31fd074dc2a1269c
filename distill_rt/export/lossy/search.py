"""Measure candidates and the student's own plans on the target, judge, and confirm the winner with other images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from distill_rt.core.errors import UsageError
from distill_rt.core.lossy_report import LossyReport, Trial
from distill_rt.export.lossy.candidates import Candidate, Student, plan_candidates
from distill_rt.export.lossy.judge import Figures, Verdict, judge
from distill_rt.export.lossy.measure import Requests, Variant, images_of, measure
from distill_rt.export.passes import identities
from distill_rt.export.progress import Progress, silent

MAX_PLANS = 6
"""Alternatives to measure; teachers have plans of many steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What came out: the candidate that entered, or None."""

    report: LossyReport
    chosen: Candidate | None


def search(
    student: Student,
    kinds: Sequence[str],
    *,
    compare: Requests,
    confirm: Requests,
    seconds: float,
    progress: Progress = silent,
) -> Found:
    """Try every candidate of some kinds.

    Args:
        compare, confirm: requests of the comparison, and of its repetition with the winner.
        seconds: of timing, about, in each of both.
    """
    contest = _Contest(student=student)
    contest.add(
        student.steps,
        Candidate(kind="", name=f"{student.steps} steps", spec=student.spec, components=student.components),
    )
    for steps, plan in plan_candidates(student.spec, student.components, student.steps)[:MAX_PLANS]:
        progress(f"compiling the plan of {steps} steps")
        contest.add(steps, plan)
    num_plans = len(contest.entries)
    skipped: dict[str, str] = {}
    for kind in kinds:
        try:
            for candidate in student.candidates(kind):
                progress(f"compiling {candidate.name}")
                contest.add(student.steps, candidate)
        except UsageError as error:
            skipped[kind] = error.message
    progress("measuring")
    figures = contest.measure(compare, seconds)
    plans, rest = figures[:num_plans], figures[num_plans:]
    verdicts = [judge(item, plans[0], plans[1:]) for item in rest]
    candidates = [entry.candidate for entry in contest.entries[num_plans:]]
    winners = [i for i, verdict in enumerate(verdicts) if verdict.accepted]
    chosen = min(winners, key=lambda i: rest[i].time_ratio, default=None)
    confirmed: Trial | None = None
    winner: Candidate | None = None
    if chosen is not None:
        progress(f"measuring {candidates[chosen].name} again")
        again = contest.measure(confirm, seconds, only=[*range(num_plans), num_plans + chosen])
        verdict = judge(again[-1], again[0], again[1:-1])
        confirmed = _trial(again[-1], candidates[chosen], verdict)
        winner = candidates[chosen] if verdict.accepted else None
    report = LossyReport(
        target=student.target.target,
        precision=student.target.options.precision,
        batch=student.target.batch,
        num_threads=student.target.options.num_threads,
        device=student.target.backend.machine(),
        num_images=len(compare.seeds),
        plans=tuple(_trial(item) for item in plans),
        trials=tuple(map(_trial, rest, candidates, verdicts)),
        skipped=skipped,
        chosen="" if winner is None else winner.name,
        confirmed=confirmed,
    )
    return Found(report=report, chosen=winner)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Entry:
    steps: int
    candidate: Candidate
    variant: Variant


@dataclass(slots=True)
class _Contest:
    """All variants, compiled once."""

    student: Student
    entries: list[_Entry] = field(default_factory=list)

    def add(self, steps: int, candidate: Candidate) -> None:
        program = self.student.target.trajectory(candidate.model(steps), candidate.spec, steps)
        variant = Variant(name=candidate.name, program=program, feeds={})
        self.entries.append(_Entry(steps=steps, candidate=candidate, variant=variant))

    def measure(self, requests: Requests, seconds: float, only: Sequence[int] | None = None) -> list[Figures]:
        student = self.student
        first = self.entries[0].candidate
        exact = student.exact.trajectory(
            first.model(student.steps, pixels=False), student.spec, student.steps, pixels=False
        )
        want_BCHW = images_of(exact, requests.feeds(student.spec, student.steps))
        entries = self.entries if only is None else [self.entries[i] for i in only]
        variants = [
            Variant(name=e.variant.name, program=e.variant.program, feeds=requests.feeds(e.candidate.spec, e.steps))
            for e in entries
        ]
        return measure(variants, want_BCHW, seconds=seconds)


def _trial(figures: Figures, candidate: Candidate | None = None, verdict: Verdict | None = None) -> Trial:
    return Trial(
        name=figures.name,
        kind="" if candidate is None else candidate.kind,
        passes=() if candidate is None else tuple(identities(candidate.passes)),
        time_ratio=round(figures.time_ratio, 4),
        time_interval=(round(figures.time_low, 4), round(figures.time_high, 4)),
        milliseconds=round(figures.milliseconds, 4),
        distance=round(figures.distance, 6),
        alternative=None if verdict is None else round(verdict.alternative, 6),
        accepted=None if verdict is None else verdict.accepted,
        reason="" if verdict is None else verdict.reason,
    )
