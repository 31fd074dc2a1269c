"""What a student must beat, and what must never pass: naive samplers, stubs and cheats."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from distill_rt.core.samplers.consistency import multistep_consistency
from distill_rt.core.samplers.ddim import ddim
from distill_rt.core.samplers.dpmpp_2m import dpmpp_2m
from distill_rt.core.table import StepTable
from distill_rt.models import Student, build_network
from distill_rt.training.quality.bench import QualityBench
from distill_rt.training.sampling import sample
from distill_rt.training.student import student_network


def naive_tables(bench: QualityBench, num_steps: int) -> dict[str, StepTable]:
    """The teacher's own solvers at few steps: DDIM, DPM-Solver++(2M), and the re-noising rule of consistency models."""
    spec = bench.teacher.spec
    times = [1.0 - i / num_steps for i in range(num_steps)]
    return {
        "teacher ddim": ddim(spec.process, spec.parameterization, times),
        "teacher dpm++2m": dpmpp_2m(spec.process, spec.parameterization, times),
        "teacher re-noise": multistep_consistency(spec.process, spec.parameterization, times),
    }


def gaussian_fit(bench: QualityBench) -> Tensor:
    """Samples of a Gaussian with the teacher's mean and covariance."""
    x = bench.fresh.flatten(1).double()
    generator = torch.Generator().manual_seed(bench.seed + 1)
    if x.shape[1] >= len(x):  # the covariance has no inverse, and for latents of large images no place in memory either
        mixed = torch.randn(len(x), len(x), generator=generator, dtype=x.dtype) @ (x - x.mean(0)) / (len(x) - 1) ** 0.5
        drawn: Tensor = (x.mean(0) + mixed).float()
        return drawn.reshape(bench.fresh.shape)
    covariance = torch.cov(x.T) + 1e-9 * torch.eye(x.shape[1], dtype=x.dtype)
    noise = torch.randn(len(x), x.shape[1], generator=generator, dtype=x.dtype)
    samples: Tensor = x.mean(0) + noise @ torch.linalg.cholesky(covariance).T
    return samples.float().reshape(bench.fresh.shape)


def untrained(bench: QualityBench, student: Student, num_steps: int) -> Tensor:
    """The student's network with fresh weights, run by the student's own plan."""
    with torch.random.fork_rng():
        torch.manual_seed(bench.seed + 2)
        network = build_network(student.spec.networks[0]).eval()
    table = student.spec.plans[num_steps]
    return sample(student.spec, [network], bench.seeds, table=table, **bench.given_to(student))


def teacher_as_student(bench: QualityBench, student: Student, num_steps: int) -> Tensor:
    """The student before its training: the teacher's weights behind the student's inputs, run by the student's plan.

    With guidance as an input, that network ignores w: a student that learned nothing.
    """
    same_inputs = student.spec.network_inputs() == bench.teacher.spec.network_inputs()
    network = bench.teacher.network if same_inputs else student_network(bench.teacher, student.spec).eval()
    table = student.spec.plans[num_steps]
    return sample(student.spec, [network], bench.seeds, table=table, **bench.given_to(student))


def memoriser(bench: QualityBench) -> Tensor:
    """Up to 800 of the teacher's own samples, handed out again and again, each under its right label (not its right prompt)."""
    generator = torch.Generator().manual_seed(bench.seed + 3)
    classes = 1 if bench.labels is None else len(set(bench.labels))  # labels repeat with this period
    per_label = min(800, bench.num_samples // 2) // classes
    position = torch.arange(bench.num_samples)
    return bench.fresh[
        position % classes + classes * torch.randint(per_label, (bench.num_samples,), generator=generator)
    ]


def mean_image(bench: QualityBench) -> Tensor:
    """The mean of all samples, every time."""
    return bench.fresh.mean(0, keepdim=True).expand_as(bench.fresh).contiguous()


CONTROLS: Mapping[str, Callable[[QualityBench, Student, int], Tensor]] = {
    "gaussian fit": lambda bench, student, num_steps: gaussian_fit(bench),
    "untrained student": untrained,
    "teacher as student": teacher_as_student,
    "memoriser": lambda bench, student, num_steps: memoriser(bench),
    "mean image": lambda bench, student, num_steps: mean_image(bench),
}
"""Negative controls: every one of them must fail the gate, or the gate measures nothing."""
SAME_FOR_ALL = frozenset({"gaussian fit", "memoriser", "mean image"})
"""Controls that do not depend on the student."""
