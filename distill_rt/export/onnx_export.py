"""Student directory -> bundle directory: graphs, contract and golden outputs."""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill_rt.core import codec
from distill_rt.core.artifacts import BundleBody, Mode
from distill_rt.core.directory import publish, refuse_existing
from distill_rt.core.errors import ArtifactError, UsageError
from distill_rt.core.manifest import write_manifest
from distill_rt.core.optional import require
from distill_rt.core.spec import StudentSpec
from distill_rt.core.tokenizer import TOKENIZER_FILE, Tokenizer
from distill_rt.export.golden import GOLDEN_FILE, PROMPTS, make_golden, save_golden
from distill_rt.export.onnx_graph import check_finite, evaluate, export_component
from distill_rt.export.progress import Progress, silent
from distill_rt.export.trajectory_bundle import join_components
from distill_rt.export.trajectory_graph import trajectory_recipe
from distill_rt.models import load_student

Array = NDArray[Any]

ONE_THREAD_BELOW = 10_000_000
"""Parameters; a layer of a network with fewer is done before a second thread has woken up, or is waited for."""
VERSIONED_PACKAGES = ("torch", "onnx", "onnxscript", "onnx_ir", "diffusers")


def export_student(
    student: str | Path,
    out: str | Path,
    mode: Mode = "step",
    *,
    steps: int | None = None,
    force: bool = False,
    progress: Progress = silent,
) -> Path:
    """Export a student (or teacher) directory as a bundle.

    Args:
        student: directory that train, distill or import wrote.
        out: the bundle; must not exist unless `force`.
        mode: ``step``: one network evaluation per call, every plan of the contract. ``trajectory``: one plan as one graph, from
            noise to pixels.
        steps: the plan of a trajectory; None is the contract's default.
        force: replace what stands at `out`.
        progress: told the stages.

    Returns:
        `out`.

    Raises:
        UsageError: `out` exists, there is no such mode, or the contract has no such plan.
        ArtifactError: the student is missing or damaged, or a weight is not finite.
        GateError: the exported graph does not compute what the student does.
        ResourceError: the disk is full or not writable.
    """
    out = Path(out)
    if mode not in typing.get_args(Mode):
        modes = " or ".join(typing.get_args(Mode))
        raise UsageError(f"there is no export mode {mode!r}", code="mode-unknown", hint=f"use {modes}")
    if steps is not None and mode != "trajectory":
        raise UsageError(
            f"steps={steps} was given, but a bundle of mode {mode} holds every plan",
            code="steps-not-in-mode",
            hint="leave steps out, or export with mode trajectory",
        )
    refuse_existing(out, force=force, ours="bundle.json")
    progress("loading the student")
    loaded = load_student(student)
    spec = loaded.spec
    plan = spec.check_steps(steps) if mode == "trajectory" else None
    modules = loaded.components()
    for name, module in modules.items():
        check_finite(module, name)
    for i in range(len(spec.networks)):
        if not any(row.net_id == i for table in spec.plans.values() for row in table.rows):
            raise ArtifactError(
                f"network {i} of {student} is used by no plan of its contract",
                code="network-unused",
                hint="drop it from the contract and train again",
            )
    parts = spec.components()
    with _threads(modules.values()), publish(out, force=force, ours="bundle.json") as directory:
        components = {}
        for done, (name, module) in enumerate(modules.items()):
            progress("exporting graphs", done, len(modules))
            components[name] = export_component(module, *parts[name], directory, f"onnx/{name}.onnx")
        progress("exporting graphs", len(modules), len(modules))

        def run(name: str, inputs: Mapping[str, Array]) -> Array:
            return evaluate(modules[name], parts[name][0], inputs)

        tokens = None
        if loaded.tokenizer is not None:
            tokens = Tokenizer(loaded.tokenizer, spec.condition)(PROMPTS).ids
            shutil.copyfile(loaded.tokenizer, directory / TOKENIZER_FILE)
        golden = make_golden(spec, run, progress, tokens=tokens, plans=None if plan is None else (plan,))
        if plan is not None:
            progress("unrolling")
            components = join_components(directory, components, spec, golden.trajectories)
            golden = dataclasses.replace(golden, components={})
        save_golden(directory / GOLDEN_FILE, golden)
        body = BundleBody(
            spec=spec,
            student_digest=loaded.digest,
            mode=mode,
            steps=plan,
            components=components,
            golden=GOLDEN_FILE,
            tokenizer=None if loaded.tokenizer is None else TOKENIZER_FILE,
            versions={name: str(require(name, extra="export").__version__) for name in _packages(spec)}
            | {"numpy": np.__version__}
            | ({} if plan is None else {"passes": trajectory_recipe()}),
        )
        write_manifest(directory, "bundle", codec.to_json(body))
    return out


def _packages(spec: StudentSpec) -> tuple[str, ...]:
    return VERSIONED_PACKAGES if spec.text_encoder is None else (*VERSIONED_PACKAGES, "transformers", "tokenizers")


@contextlib.contextmanager
def _threads(networks: Iterable[torch.nn.Module]) -> Iterator[None]:
    """One thread for small networks: on a busy machine, waiting for the second one made an export fifty times slower."""
    before = torch.get_num_threads()
    if sum(parameter.numel() for network in networks for parameter in network.parameters()) < ONE_THREAD_BELOW:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
