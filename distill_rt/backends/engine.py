"""Engine directories: read one, refuse a damaged or foreign one, load its compiled components."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from distill_rt.backends.base import MAX_THREADS, Backend, CompileOptions, Program, component_batch, component_batches
from distill_rt.backends.cuda.programs import CudaBackend, DeviceProgram
from distill_rt.backends.fingerprint import check_engine
from distill_rt.core.artifacts import EngineBody
from distill_rt.core.errors import ArtifactError, GateError
from distill_rt.core.manifest import Manifest, decode_body, read_manifest, read_whole, verify_files
from distill_rt.core.spec import Tensors


@dataclass(frozen=True, kw_only=True, slots=True)
class Engine:
    """A checked engine directory; nothing is loaded yet."""

    directory: Path
    body: EngineBody
    digest: str
    backend: Backend
    options: CompileOptions

    def load(self, component: str, num_images: int) -> Program:
        """The program of one component for one of `body.batches`.

        Its B is `component_batch(body.spec, component, num_images)`: under cfg the first half of a network's is unconditional.
        The text encoder may be there for the smallest batch only (`component_batches`).

        Raises:
            TargetError: the backend's runtime refuses the files.
        """
        return self.backend.load(*self._compiled(component, num_images))

    def load_device(self, component: str, num_images: int) -> DeviceProgram:
        """As `load`, for an engine whose `backend.runs_on` is "cuda": inputs and outputs stay on the GPU.

        Raises:
            TargetError: the backend's runtime refuses the files.
            ResourceError: not enough GPU memory.
        """
        return self.cuda_backend().load_device(*self._compiled(component, num_images))

    def cuda_backend(self) -> CudaBackend:
        """The backend of an engine that runs on a GPU."""
        assert self.backend.runs_on == "cuda", self.body.target
        return cast(CudaBackend, self.backend)

    def _compiled(
        self, component: str, num_images: int
    ) -> tuple[Path, tuple[str, ...], Tensors, Tensors, int, CompileOptions]:
        (compiled,) = (item for item in self.body.components[component] if item.batch == num_images)
        inputs, outputs = self.body.parts[component]
        batch = component_batch(self.body.spec, component, num_images)
        return self.directory, compiled.files, inputs, outputs, batch, self.options


def open_engine(directory: str | Path, *, ungated: bool = False) -> Engine:
    """Read and verify an engine, and check that it was compiled for this machine.

    Args:
        ungated: accept an engine whose gate has not run; for who is about to run it.

    Raises:
        ArtifactError: missing, damaged, foreign or from another version.
        TargetError: compiled for another machine or other versions; the hint rebuilds it.
        GateError: built on a machine that could not run it, and its gate has not run since.
    """
    path = Path(directory)
    return read_whole(path, "engine", lambda: _open(path, ungated=ungated))


def _open(directory: Path, *, ungated: bool) -> Engine:
    manifest = read_manifest(directory, "engine")
    body = decode_body(manifest, EngineBody, directory)
    _check_consistent(body, manifest, directory)
    verify_files(directory, manifest)
    options = CompileOptions(
        precision=body.precision,
        num_threads=body.options["num_threads"],
        refittable=body.options.get("refittable") is True,
    )
    backend = check_engine(body, directory, options)
    if body.gate is None and not ungated:
        raise GateError(
            f"{directory} was compiled on a machine that cannot run it, so nobody has compared it with the student yet",
            code="gate-not-run",
            hint=f"run its gate here, once: distill-rt verify {shlex.quote(str(directory))} --gate",
        )
    return Engine(directory=directory, body=body, digest=manifest.digest, backend=backend, options=options)


def _check_consistent(body: EngineBody, manifest: Manifest, directory: Path) -> None:
    """The parts of a well-typed manifest must also fit each other; only an edited one fails here."""
    listed = {entry.path for entry in manifest.files}
    threads = body.options.get("num_threads")
    problem = ""
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
        problem = f"options.num_threads must be an integer of 1 to {MAX_THREADS}, got {threads!r}"
    elif set(body.components) != set(body.parts):
        problem = f"components must be {', '.join(body.parts)}, as the contract says for mode {body.mode}"
    elif not body.batches or any(not _complete(name, body) for name in body.components):
        problem = "every component must be compiled for every one of batches"
    elif not all(item.files and set(item.files) <= listed for items in body.components.values() for item in items):
        problem = "components name files that are not listed"
    elif body.gate is None and body.golden is None:
        problem = "its gate has not run, and there are no golden outputs to run it with"
    elif (body.tokenizer is None) != (body.spec.condition.kind != "text") or body.tokenizer not in (None, *listed):
        problem = f"tokenizer {body.tokenizer} is not that of a {body.spec.condition.kind} condition, or is not listed"
    elif body.golden is not None and body.golden not in listed:
        problem = f"golden outputs {body.golden} are not listed"
    if problem:
        raise ArtifactError(
            f"{directory}/engine.json is inconsistent: {problem}",
            code="artifact-damaged",
            hint="compile it again: distill-rt compile BUNDLE --target TARGET --out ENGINE --force",
        )


def _complete(component: str, body: EngineBody) -> bool:
    compiled = tuple(item.batch for item in body.components[component])
    return compiled in {component_batches(component, body.batches, joined=joined) for joined in (True, False)}
