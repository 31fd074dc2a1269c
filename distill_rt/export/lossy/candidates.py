"""What `tune` tries: every lossy pass with its settings, as a trajectory graph.

Legend: B images, M images.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.base import Program, network_batch
from distill_rt.core.errors import UsageError
from distill_rt.core.spec import TEXT_ENCODER, StudentSpec
from distill_rt.core.stitch import stitch_contracts
from distill_rt.export.gate import evaluate_rows
from distill_rt.export.lossy.measure import Machine, Requests, distances, images_of
from distill_rt.export.lossy.ptqd import corrected_table, fit_correction, record_outputs, remove_bias_pass
from distill_rt.export.lossy.schedules import deep_cache, greedy
from distill_rt.export.passes import Pass, run_passes
from distill_rt.export.passes.reuse import Reuse, reuse_pass
from distill_rt.export.passes.token_downsampling import todo_pass
from distill_rt.export.passes.unroll import unroll
from distill_rt.export.trajectory_graph import TRAJECTORY_PASSES

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]
Components = Mapping[str, "ir.Model"]

KINDS = ("reuse", "todo", "ptqd", "t-stitch")
SENSITIVITY_IMAGES = 4
"""Images per sensitivity: they rank modules, the verdict is of others."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One lossy way through a plan.

    Args:
        kind: one of `KINDS`.
        spec, components: what is unrolled; those of the student unless the pass is another table or another network.
        passes: on the unrolled graph, before the passes that every trajectory gets.
        corrects: whether it brings the engine closer to the student instead of leaving something out. The gate then still
            compares with the student's own images.
    """

    kind: str
    name: str
    spec: StudentSpec
    components: Components
    passes: tuple[Pass, ...] = ()
    corrects: bool = False

    def model(self, steps: int, *, pixels: bool = True) -> ir.Model:
        """Its trajectory graph."""
        unrolled = unroll(self.components, self.spec, steps, pixels=pixels)
        return run_passes(unrolled, (*self.passes, *TRAJECTORY_PASSES))


@dataclass(frozen=True, kw_only=True, slots=True)
class Student:
    """What candidates are made of.

    Args:
        components: graphs of `spec.components()`.
        steps: the full plan.
        exact: a machine that computes in float32, whatever the target.
        target: the machine that the engine is for.
        requests: to calibrate with; the verdict is of others.
        small: contract and graphs of the network for T-Stitch.
    """

    spec: StudentSpec
    components: Components
    steps: int
    exact: Machine
    target: Machine
    requests: Requests
    small: tuple[StudentSpec, Components] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def candidates(self, kind: str) -> Iterator[Candidate]:
        """All candidates of a kind, in the order in which they are worth measuring.

        Raises:
            UsageError: nothing of the kind fits this student; says why.
        """
        makers = {"reuse": self._reuse, "todo": self._todo, "ptqd": self._ptqd, "t-stitch": self._stitch}
        return makers[kind]()

    def images(self, model: ir.Model) -> Array:
        """float32 images (M, C, H, W) of a trajectory graph without pixels, computed exactly, of a few requests."""
        program = self.exact.trajectory(model, self.spec, self.steps, pixels=False)
        return images_of(program, self.requests.first(SENSITIVITY_IMAGES).feeds(self.spec, self.steps))

    def _own(self, kind: str, name: str, *passes: Pass) -> Candidate:
        return Candidate(kind=kind, name=name, spec=self.spec, components=self.components, passes=passes)

    def _reuse(self) -> Iterator[Candidate]:
        table = self.spec.plans[self.steps]
        if table.num_evaluations < 2:
            raise UsageError("a plan of one evaluation has nothing to reuse", code="reuse-nothing")
        unrolled = unroll(self.components, self.spec, self.steps, pixels=False)
        want = self.images(unrolled)

        def sensitivity(wire: Reuse) -> float:
            return float(distances(self.images(reuse_pass([wire])(unrolled)), want).mean())

        found = False
        for schedules in (deep_cache(unrolled, table), greedy(unrolled, table, sensitivity)):
            for schedule in schedules:
                found = True
                yield self._own("reuse", schedule.name, reuse_pass(schedule.wires))
        if not found:
            raise UsageError("no module of this network can be reused", code="reuse-nothing")

    def _todo(self) -> Iterator[Candidate]:
        step = todo_pass(**self.options.get("todo", {}))
        step(unroll(self.components, self.spec, self.steps))  # refuses where nothing fits
        yield self._own("todo", f"todo, stride {step.settings['stride']}", step)

    def _ptqd(self) -> Iterator[Candidate]:
        if self.target.options.precision == "fp32":
            raise UsageError("float32 has no error to correct", code="ptqd-fp32", hint="compile with --precision bf16")
        exact, engine = self._networks(self.exact), self._networks(self.target)
        text, null_text = self._texts()
        outputs = record_outputs(
            self.spec,
            lambda net_id, inputs: evaluate_rows(exact[net_id], inputs),
            lambda net_id, inputs: evaluate_rows(engine[net_id], inputs),
            steps=self.steps,
            guidance=self.requests.guidance,
            seeds=self.requests.seeds,
            labels=self.requests.labels,
            text=text,
            null_text=null_text,
        )
        correction = fit_correction(*outputs)
        table = self.spec.plans[self.steps]
        plans = {**self.spec.plans, self.steps: corrected_table(table, correction)}
        yield Candidate(
            kind="ptqd",
            name=f"ptqd, {min(correction.unexplained):.0%} to {max(correction.unexplained):.0%} of the error uncorrelated",
            spec=dataclasses.replace(self.spec, plans=plans),
            components=self.components,
            passes=(remove_bias_pass(table, correction),),
            corrects=True,
        )

    def _stitch(self) -> Iterator[Candidate]:
        if self.small is None:
            raise UsageError("t-stitch needs a small network", code="stitch-missing", hint="give --stitch SMALL_BUNDLE")
        spec, components = self.small
        for first in sorted({1, self.steps // 2} - {0, self.steps}):
            stitched = stitch_contracts(self.spec, spec, first=first)
            if self.steps not in stitched.plans:
                raise UsageError(f"the small student does not have the plan of {self.steps} steps", code="stitch-plans")
            yield Candidate(
                kind="t-stitch",
                name=f"t-stitch, small network in the first {first}",
                spec=stitched,
                components={**self.components, "network1": components["network0"]},
            )

    def _networks(self, machine: Machine) -> dict[int, Program]:
        parts = self.spec.components()
        rows = network_batch(self.spec, machine.batch)
        machine = dataclasses.replace(machine, batch=rows, directory=_folder(machine, "networks"))
        return {
            i: machine.program(self.components[f"network{i}"], *parts[f"network{i}"])
            for i in range(len(self.spec.networks))
        }

    def _texts(self) -> tuple[Array | None, Array | None]:
        if self.requests.tokens is None:
            return None, None
        machine = dataclasses.replace(self.exact, batch=1, directory=_folder(self.exact, "text"))
        program = machine.program(self.components[TEXT_ENCODER], *self.spec.components()[TEXT_ENCODER])
        text = evaluate_rows(program, {"tokens": self.requests.tokens})
        if self.spec.guidance.mode != "cfg":
            return text, None
        null = np.array([self.spec.condition.null_tokens], np.int64)
        return text, evaluate_rows(program, {"tokens": null})


def _folder(machine: Machine, name: str) -> Any:
    path = machine.directory / name
    path.mkdir(exist_ok=True)
    return path


def plan_candidates(spec: StudentSpec, components: Components, steps: int) -> Sequence[tuple[int, Candidate]]:
    """The honest alternatives: every plan with fewer evaluations than that of `steps`, the longest first."""
    most = spec.plans[steps].num_evaluations
    fewer = [n for n in sorted(spec.steps, reverse=True) if spec.plans[n].num_evaluations < most]
    return [(n, Candidate(kind="", name=f"{n} steps", spec=spec, components=components)) for n in fewer]
