"""One engine to be: everything that decides it, its fingerprint, and how to fill a directory with it. No torch."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from distill_rt.backends import processor
from distill_rt.backends.base import Backend, CompileOptions, Program, component_batch, component_batches
from distill_rt.backends.fingerprint import engine_parts, fingerprint
from distill_rt.backends.registry import Target
from distill_rt.core import codec
from distill_rt.core.artifacts import Compiled, EngineBody
from distill_rt.core.errors import TargetError
from distill_rt.core.manifest import write_manifest
from distill_rt.core.spec import TRAJECTORY
from distill_rt.export.activations import peak_activation_bytes
from distill_rt.export.bundle import Bundle
from distill_rt.export.exactness import same_bits
from distill_rt.export.golden import GOLDEN_FILE, Golden, load_golden, save_golden
from distill_rt.export.passes import with_node
from distill_rt.export.precision import typed_graph
from distill_rt.export.progress import Progress
from distill_rt.export.quantize.networks import REST, make_quantizer
from distill_rt.export.rewrites import rewrite_graph
from distill_rt.export.trajectory_gate import gate_engine, golden_rows


class EngineBuilder:
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
        self.quantizer = make_quantizer(bundle, options.precision, progress, typed_graphs=backend.typed_graphs)
        if self.quantizer is not None:
            self.parts["quantization"] = self.quantizer.settings()
        self.key = fingerprint(self.parts)

    def build(self, directory: Path) -> None:
        """Compile every component for every batch, pass the gate, write the manifest last.

        Where this machine cannot run what it has built, the gate waits: the engine carries the golden outputs, says that
        its gate has not run, and no pipeline loads it before `distill_rt.export.late_gate` has run it on the target.
        """
        start = time.perf_counter()
        components = self.compile_components(directory)
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
                "refittable": self.options.refittable,
                "bit_exact_batches": self.backend.bit_exact_batches,
                "left_out_batches": [batch for batch in self.batches if batch not in batches],
                "built_on": processor.name(),
                **({} if self.bundle.body.lossy is None else {"lossy": codec.to_json(self.bundle.body.lossy)}),
                **({} if self.quantizer is None else {"quantization": self.quantizer.reports}),
                **({"activation_bytes": self.activation_bytes} if self.backend.runs_on == "cuda" else {}),
            },
        )
        write_manifest(directory, "engine", codec.to_json(body))

    def compile_components(self, directory: Path) -> dict[str, dict[int, Compiled]]:
        body, joined = self.bundle.body, self.backend.joins_batches
        batches = {name: component_batches(name, self.batches, joined=joined) for name in body.parts}
        jobs = [
            (name, group)
            for name, items in batches.items()
            for group in ([items] if joined else [(batch,) for batch in items])
        ]
        components: dict[str, dict[int, Compiled]] = {name: {} for name in body.components}
        with tempfile.TemporaryDirectory(prefix=".rewrite-", dir=directory) as scratch:
            graphs = {name: self.graph(name, Path(scratch)) for name in body.components}
            if self.backend.runs_on == "cuda":
                self.activation_bytes = {name: self._activation_bytes(name, items) for name, items in batches.items()}
            for done, (name, group) in enumerate(jobs):
                self.progress(f"compiling for {self.target}", done, len(jobs))
                try:
                    files = self.backend.compile(
                        graphs[name],
                        body.components[name],
                        [component_batch(body.spec, name, batch) for batch in group],
                        directory,
                        name if joined else f"{name}.b{group[0]}",
                        self.options,
                    )
                except TargetError as error:
                    named = with_node(error, graphs[name], str(self.target))
                    if named is error:
                        raise
                    raise named from error
                components[name] |= {batch: Compiled(batch=batch, files=files) for batch in group}
        self.progress(f"compiling for {self.target}", len(jobs), len(jobs))
        return components

    def _activation_bytes(self, name: str, batches: tuple[int, ...]) -> dict[str, int]:
        """An upper bound for every number of images."""
        graph = self.bundle.directory / self.bundle.body.components[name].file
        float_bytes = 4 if self.options.precision == "fp32" else 2
        rows = {batch: component_batch(self.bundle.body.spec, name, batch) for batch in batches}
        return {str(batch): peak_activation_bytes(graph, num, float_bytes) for batch, num in rows.items()}

    def graph(self, name: str, scratch: Path) -> Path:
        """The graph of one component as the backend wants it."""
        component = self.bundle.body.components[name]
        source = self.bundle.directory / component.file
        graph = rewrite_graph(source, self.backend.rewrites, scratch / f"{name}.onnx", target=str(self.target))
        precision = self.options.precision
        if self.quantizer is not None:
            graph, precision = self.quantizer.graph(name, graph, scratch / f"{name}.{precision}.onnx"), REST
        if not self.backend.typed_graphs:
            return graph
        return typed_graph(graph, component, precision, scratch / f"{name}.{precision}.typed.onnx")

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
