"""Bundle + target -> engine: cached? verify and copy : build in a temporary directory -> gate -> rename. No torch."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from distill_rt.backends import processor
from distill_rt.backends.base import Backend, CompileOptions, Program, component_batch, component_batches
from distill_rt.backends.cache import cached_engine, is_engine
from distill_rt.backends.fingerprint import engine_parts, fingerprint
from distill_rt.backends.registry import AUTO, Target, resolve_target
from distill_rt.core import codec
from distill_rt.core.artifacts import Compiled, EngineBody, Precision
from distill_rt.core.directory import publish, refuse_existing
from distill_rt.core.errors import ArtifactError, TargetError, UsageError
from distill_rt.core.manifest import write_manifest
from distill_rt.core.spec import TRAJECTORY
from distill_rt.export.activations import peak_activation_bytes
from distill_rt.export.bundle import Bundle, open_bundle
from distill_rt.export.exactness import same_bits
from distill_rt.export.golden import GOLDEN_FILE, Golden, load_golden, save_golden
from distill_rt.export.precision import typed_graph
from distill_rt.export.progress import Progress, silent
from distill_rt.export.rewrites import rewrite_graph
from distill_rt.export.trajectory_gate import gate_engine, golden_rows

MAX_BATCH = 1024


def compile_bundle(
    bundle: str | Path,
    target: str = AUTO,
    out: str | Path = "",
    *,
    precision: Precision | None = None,
    batches: Sequence[int] = (1,),
    num_threads: int | None = None,
    force: bool = False,
    use_cache: bool = True,
    progress: Progress = silent,
) -> Path:
    """Compile a bundle for one target, prove that the engine still is the student, and publish it.

    Args:
        bundle: directory that `export_student` wrote.
        target: such as ``openvino:cpu``; ``auto`` takes the best of this machine.
        out: the engine; must not exist unless `force`. Empty: the bundle's name with the suffix ``.engine``.
        precision: of the arithmetic inside of the networks; None takes the backend's default (fp32 on processors).
        batches: numbers of images to compile for. A backend with `bit_exact_batches` adds 1, and leaves out batches whose
            bits differ from it on this machine.
        num_threads: of one call; None takes every physical core that this process may use.
        force: replace what stands at `out`, and build even if the cache holds this engine.
        use_cache: False builds without looking into the cache or adding to it.
        progress: told the stages.

    Returns:
        Path of the engine.

    Raises:
        UsageError: `out` exists, no such target, or batches out of range.
        ArtifactError: the bundle is missing, damaged or foreign.
        TargetError: this machine cannot build for that target or precision.
        GateError: the engine is too far from the student; nothing was published.
        ResourceError: the disk or the cache is full or not writable.
    """
    out = Path(out) if str(out) else Path(bundle).with_suffix(".engine")
    refuse_existing(out, force=force, ours="engine.json")
    _check_batches(batches)
    progress("verifying the bundle")
    opened = open_bundle(bundle)
    resolved, backend = resolve_target(target)
    options = CompileOptions(
        precision=backend.precisions[0] if precision is None else precision,
        num_threads=processor.available_cores() if num_threads is None else num_threads,
    )
    backend.check(options)
    reason = backend.cannot_build()
    if reason is not None:
        raise TargetError(
            f"{resolved} cannot be compiled on this machine: {reason}",
            code="build-needs-target",
            hint="compile it on the machine that shall run it",
        )
    wanted = set(batches) | ({1} if backend.bit_exact_batches else set())
    builder = _Builder(opened, resolved, backend, options, tuple(sorted(wanted)), progress)
    if not use_cache:
        with publish(out, force=force, ours="engine.json") as directory:
            builder.build(directory)
        return out
    with cached_engine(builder.key, builder.build, rebuild=force, notify=progress) as cached:
        try:
            with publish(out, force=force, ours="engine.json") as directory:
                _copy(cached, directory)
        except UsageError:
            # It did not stand there when we began: another process has compiled the same engine to the same place.
            if not _finished_meanwhile(out, builder.key):
                raise
    return out


class _Builder:
    """One engine to be: everything that decides it, its fingerprint, and how to fill a directory with it."""

    def __init__(
        self,
        bundle: Bundle,
        target: Target,
        backend: Backend,
        options: CompileOptions,
        batches: tuple[int, ...],
        progress: Progress,
    ) -> None:
        self.bundle, self.target, self.backend, self.options = bundle, target, backend, options
        self.batches, self.progress = batches, progress
        self.activation_bytes: dict[str, dict[str, int]] = {}
        self.parts = engine_parts(
            bundle_digest=bundle.digest, target=target, backend=backend, batches=batches, options=options
        )
        self.key = fingerprint(self.parts)

    def build(self, directory: Path) -> None:
        """Compile every component for every batch, pass the gate, write the manifest last.

        Where this machine cannot run what it has built, the gate waits: the engine carries the golden outputs, says that
        its gate has not run, and no pipeline loads it before `distill_rt.export.late_gate` has run it on the target.
        """
        start = time.perf_counter()
        components = self._compile(directory)
        self.progress(f"kernels for {self.target}")
        self.backend.add_kernels(directory)
        build_seconds = time.perf_counter() - start
        golden = load_golden(self.bundle.directory / self.bundle.body.golden)
        elsewhere = self.backend.cannot_run()
        gate, batches = None, self.batches
        if elsewhere is None:
            batches = self._keep_exact(directory, components, golden)
            gate = gate_engine(
                self.bundle.body.spec,
                self.bundle.body.steps,
                golden,
                lambda name, num_images: self._load(directory, name, components[name][num_images]),
                precision=self.options.precision,
                batches=batches,
                device=self.backend.machine(),
                joined=self.backend.joins_batches,
                progress=self.progress,
            )
        else:
            self.progress(f"the gate cannot run here: {elsewhere}")
            save_golden(directory / GOLDEN_FILE, golden)
        body = EngineBody(
            spec=self.bundle.body.spec,
            bundle_digest=self.bundle.digest,
            target=str(self.target),
            precision=self.options.precision,
            fingerprint=self.key,
            fingerprint_parts=self.parts,
            mode=self.bundle.body.mode,
            steps=self.bundle.body.steps,
            batches=batches,
            components={
                name: tuple(compiled for batch, compiled in items.items() if batch in batches)
                for name, items in components.items()
            },
            gate=gate,
            golden=None if gate is not None else GOLDEN_FILE,
            tokenizer=self._copy_tokenizer(directory),
            build_seconds=round(build_seconds, 3),
            options={
                "num_threads": self.options.num_threads,
                "bit_exact_batches": self.backend.bit_exact_batches,
                "left_out_batches": [batch for batch in self.batches if batch not in batches],
                "built_on": processor.name(),
                **({} if self.bundle.body.lossy is None else {"lossy": codec.to_json(self.bundle.body.lossy)}),
                **({"activation_bytes": self.activation_bytes} if self.backend.runs_on == "cuda" else {}),
            },
        )
        write_manifest(directory, "engine", codec.to_json(body))

    def _compile(self, directory: Path) -> dict[str, dict[int, Compiled]]:
        body, joined = self.bundle.body, self.backend.joins_batches
        batches = {name: component_batches(name, self.batches, joined=joined) for name in body.parts}
        jobs = [
            (name, group)
            for name, items in batches.items()
            for group in ([items] if joined else [(batch,) for batch in items])
        ]
        components: dict[str, dict[int, Compiled]] = {name: {} for name in body.components}
        with tempfile.TemporaryDirectory(prefix=".rewrite-", dir=directory) as scratch:
            graphs = {name: self._graph(name, Path(scratch)) for name in body.components}
            if self.backend.runs_on == "cuda":
                self.activation_bytes = {
                    name: {
                        str(b): peak_activation_bytes(graphs[name], component_batch(body.spec, name, b)) for b in items
                    }
                    for name, items in batches.items()
                }
            for done, (name, group) in enumerate(jobs):
                self.progress(f"compiling for {self.target}", done, len(jobs))
                files = self.backend.compile(
                    graphs[name],
                    body.components[name],
                    [component_batch(body.spec, name, batch) for batch in group],
                    directory,
                    name if joined else f"{name}.b{group[0]}",
                    self.options,
                )
                components[name] |= {batch: Compiled(batch=batch, files=files) for batch in group}
        self.progress(f"compiling for {self.target}", len(jobs), len(jobs))
        return components

    def _graph(self, name: str, scratch: Path) -> Path:
        """The graph of one component as the backend wants it."""
        component = self.bundle.body.components[name]
        source = self.bundle.directory / component.file
        graph = rewrite_graph(source, self.backend.rewrites, scratch / f"{name}.onnx", target=str(self.target))
        if not self.backend.typed_graphs:
            return graph
        return typed_graph(graph, component, self.options.precision, scratch / f"{name}.{self.options.precision}.onnx")

    def _keep_exact(
        self, directory: Path, components: dict[str, dict[int, Compiled]], golden: Golden
    ) -> tuple[int, ...]:
        """The batches in which every image has the bits that it has alone; the files of the others are removed."""
        if not self.backend.bit_exact_batches or self.batches == (1,):
            return self.batches
        exact = set(self.batches)
        body = self.bundle.body
        rows = {name: item.inputs for name, item in golden.components.items()}
        if body.steps is not None:
            rows = {TRAJECTORY: golden_rows(body.spec, golden.trajectories)}
        for name, items in components.items():
            reference = self._load(directory, name, items[1])
            for batch in sorted(exact & (items.keys() - {1})):
                self.progress(f"comparing the bits of batch {batch} with batch 1")
                if not same_bits(reference, self._load(directory, name, items[batch]), rows[name]):
                    exact.discard(batch)
        for items in components.values():
            for batch in items.keys() - exact:
                for file in items[batch].files:
                    (directory / file).unlink()
        for batch in sorted(set(self.batches) - exact):
            self.progress(f"batch {batch} is left out: on this machine its bits differ from those of batch 1")
        return tuple(sorted(exact))

    def _copy_tokenizer(self, directory: Path) -> str | None:
        file = self.bundle.body.tokenizer
        if file is not None:
            shutil.copyfile(self.bundle.directory / file, directory / file)
        return file

    def _load(self, directory: Path, component: str, compiled: Compiled) -> Program:
        spec = self.bundle.body.spec
        inputs, outputs = self.bundle.body.parts[component]
        return self.backend.load(
            directory,
            compiled.files,
            inputs,
            outputs,
            component_batch(spec, component, compiled.batch),
            self.options,
        )


def _copy(source: Path, directory: Path) -> None:
    """Copy every file; not `shutil.copytree`, which hides a full disk in an error without a number."""
    for path in sorted(source.rglob("*")):
        target = directory / path.relative_to(source)
        if path.is_dir():
            target.mkdir()
        else:
            shutil.copyfile(path, target)


def _check_batches(batches: Sequence[int]) -> None:
    for batch in batches:
        if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MAX_BATCH:
            raise UsageError(
                f"a batch must be an integer of 1..{MAX_BATCH}, got {batch!r}",
                code="batch-out-of-range",
                hint="give numbers of images, for example 1,4,16",
            )
    if not batches:
        raise UsageError("no batch was given", code="batch-missing", hint="give numbers of images, for example 1,4,16")


def _finished_meanwhile(out: Path, key: str) -> bool:
    try:
        return is_engine(out, key)
    except ArtifactError:
        return False
