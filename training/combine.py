"""A student as a linear combination of the weights that its training passed through (LCSC).

Liu et al. 2024 (arXiv 2404.02241), algorithm 1: an evolutionary search for coefficients that sum to 1 and may be negative, by a
distance of samples; averages of any decay are among the combinations, and some among the first ones tried. The distance is the
sliced Wasserstein one to the teacher's samples of the same noise (theirs: FID). What the search found is measured again on
noise that it has not seen.

Legend: K kept weights, P combinations of a generation, M elements of all weights.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill_rt.core.directory import check_writable, refuse_existing
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.models import Student, load_student, save_student
from distill_rt.training.config import check_seed
from distill_rt.training.draws import Draws, Purpose
from distill_rt.training.evaluate import scale_of
from distill_rt.training.kept import read_kept
from distill_rt.training.quality.bench import QualityBench
from distill_rt.training.quality.metrics import sliced_wasserstein
from distill_rt.training.quality.prompts import asked_prompts

EMA_DECAYS = (0.3, 0.5, 0.7, 0.8, 0.9)
"""Of the averages that the search starts from, beside the plain one and the last weights."""

Distance = Callable[[Tensor], float]
Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total)."""


def combine(
    student: Path,
    teacher: Path,
    out: Path,
    *,
    weights: Path | None = None,
    steps: int | None = None,
    prompts: Sequence[str] | None = None,
    num_samples: int = 1000,
    generations: int = 20,
    population: int = 16,
    seed: int = 0,
    force: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Search the combination and write it as a student with the contract of `student`.

    Args:
        student, teacher: directories.
        weights: of the student's run; None is ``<student>.weights``.
        steps: the plan whose samples are compared; None is the contract's default.
        prompts: as for `evaluate`.
        num_samples: of one combination.
        generations, population: evaluations are their product.
        seed: of the search.

    Returns:
        A JSON object: path, digest, checkpoints, coefficients, the teacher's guidance scale (`scale_of`), and distances to the
        teacher on the search's noise (``searched``) and on other noise (``held_out``): of the combination, the plain average,
        the last weights and the student; ``beats_average`` says whether it is nearer than the plain average on the latter.

    Raises:
        UsageError: settings out of range, a teacher of other samples, or no prompts.
        ArtifactError: no weights, or of another run.
    """
    if num_samples < 10 or generations < 1 or population < 4:
        raise UsageError(
            "a search needs at least 10 samples, 1 generation and 4 combinations, "
            f"got {num_samples}, {generations} and {population}",
            code="setting-invalid",
        )
    check_seed(seed)
    refuse_existing(out, force=force, ours="student.json")
    loaded, reference = load_student(student), load_student(teacher)
    if loaded.spec.sample_shape != reference.spec.sample_shape or loaded.spec.condition != reference.spec.condition:
        raise UsageError(f"{student} and {teacher} make different things", code="teacher-mismatch")
    num_steps = loaded.spec.check_steps(steps)
    kept = read_kept(weights or student.with_name(f"{student.name}.weights"), loaded.spec.provenance)
    if len(kept) < 2:
        raise ArtifactError("one checkpoint is no choice", code="weights-missing", hint="use a smaller --keep-every")
    mixture = Mixture(loaded.networks[0], list(kept.values()))
    asked = asked_prompts(reference, prompts, num_samples)
    guidance = scale_of(loaded, reference)
    check_writable(out)

    def bench_of(noise: int) -> QualityBench:
        return QualityBench(reference, None, asked=asked, num_samples=num_samples, guidance=guidance, seed=noise)

    def distance(bench: QualityBench, network: nn.Module) -> float:
        samples = bench.student_samples(dataclasses.replace(loaded, networks=(network,)), num_steps)
        return sliced_wasserstein(samples, bench.paired, seed=bench.seed)

    bench = bench_of(0)
    best = search(
        lambda coefficients: distance(bench, mixture(coefficients)),
        first_combinations(len(kept)),
        generations=generations,
        population=population,
        seed=seed,
        progress=progress,
    )
    average = torch.full((len(kept),), 1.0 / len(kept))
    last = torch.eye(len(kept))[-1]
    figures = {
        name: {
            "combination": distance(noise, mixture(best)),
            "average": distance(noise, mixture(average)),
            "last": distance(noise, mixture(last)),
            "student": distance(noise, loaded.networks[0]),
        }
        for name, noise in (("searched", bench), ("held_out", bench_of(1)))
    }
    report = {
        "checkpoints": list(kept),
        "coefficients": [round(value, 6) for value in best.tolist()],
        "steps": num_steps,
        "guidance": guidance,
        **figures,
        "beats_average": figures["held_out"]["combination"] < figures["held_out"]["average"],
    }
    made = {"seed": seed, "generations": generations, "population": population, "num_samples": num_samples, **report}
    digest = _save(out, loaded, mixture(best), made, force=force)
    return {"path": str(out), "digest": digest, **report}


def _save(out: Path, student: Student, network: nn.Module, made: dict[str, Any], *, force: bool) -> str:
    provenance = {**student.spec.provenance, "combined": {"student": student.digest, **made}}
    spec = dataclasses.replace(student.spec, provenance=provenance)
    return save_student(
        out,
        spec,
        [network],
        text_encoder=student.text_encoder,
        decoder=student.decoder,
        tokenizer=student.tokenizer,
        force=force,
    )


class Mixture:
    """Coefficients (K,) to the network with the combined weights; always the same module, filled anew."""

    def __init__(self, network: nn.Module, kept: list[dict[str, Tensor]]) -> None:
        self._network = copy.deepcopy(network)
        own = self._network.state_dict()
        for state in kept:
            if {name: value.shape for name, value in state.items()} != {n: v.shape for n, v in own.items()}:
                raise ArtifactError("the kept weights are of another network", code="weights-of-another-run")
        self._stacks = {name: torch.stack([state[name] for state in kept]) for name in own}

    def __call__(self, coefficients_K: Tensor) -> nn.Module:
        mixed = {name: torch.tensordot(coefficients_K, stack, dims=1) for name, stack in self._stacks.items()}
        self._network.load_state_dict(mixed)
        return self._network


def first_combinations(num: int) -> Tensor:
    """The plain average, the last weights, and averages that forget: (2 + len(EMA_DECAYS), K), rows sum to 1."""
    age = torch.arange(num - 1, -1, -1, dtype=torch.float32)
    rows = [torch.ones(num), (age == 0).float(), *(decay**age for decay in EMA_DECAYS)]
    return torch.stack([row / row.sum() for row in rows])


def search(
    distance: Distance,
    first_FK: Tensor,
    *,
    generations: int,
    population: int,
    seed: int,
    progress: Progress | None = None,
) -> Tensor:
    """The best combination found, (K,).

    A child lies on the line through two of the better half, a little beyond both, plus noise that falls to zero over the
    generations. Parents compete with their children, so the best is never lost.
    """
    num = first_FK.shape[1]
    tried = [(distance(row), row) for row in first_FK]
    for generation in range(generations):
        if progress is not None:
            progress("generations", generation, generations)
        tried = sorted(tried, key=lambda pair: pair[0])[: max(2, population // 2)]
        better = torch.stack([row for _, row in tried])
        draws = Draws(seed, generation, population)
        a, b = (better[draws.integers(0, len(better), purpose)] for purpose in (Purpose.INDEX, Purpose.DATA))
        along = 1.5 * draws.uniform(Purpose.TIME)[:, None] - 0.25
        noise = draws.normal((num,)) * (0.5 / num) * (1.0 - generation / generations)
        children = a + along * (b - a) + noise
        children = children + (1.0 - children.sum(dim=1, keepdim=True)) / num
        tried += [(distance(row), row) for row in children]
    best: Tensor = min(tried, key=lambda pair: pair[0])[1]
    return best
