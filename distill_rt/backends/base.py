"""What every backend provides: `Backend` compiles one ONNX component for one batch, `Program` runs it.

A program has static shapes and owns its buffers. Everything slow happens in `Backend.load`; a call is: write into
`inputs`, `run()`, read `outputs`. Nothing is allocated, converted or looked up on the way.

Legend: B evaluations of a network per call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.errors import UsageError
from distill_rt.core.spec import TEXT_ENCODER, StudentSpec, TensorSpec

Array = NDArray[Any]

CACHE_LINE_BYTES = 64
MAX_THREADS = 1024
"""More than any machine has cores for one call: backends start whatever number they are told, at megabytes for each."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CompileOptions:
    """What is pinned for a whole engine, at build and at load.

    Args:
        precision: of the arithmetic inside of the networks; inputs and outputs stay float32.
        num_threads: threads of one call. It is part of the engine: a runtime that chose its own number would change
            speed and, on some backends, the last bits.
        refittable: other weights can be put into the compiled components (`RefittingBackend`).
    """

    precision: Precision
    num_threads: int
    refittable: bool = False

    def __post_init__(self) -> None:
        threads = self.num_threads
        if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= MAX_THREADS:
            raise UsageError(
                f"num_threads must be an integer of 1 to {MAX_THREADS}, got {threads!r:.40}",
                code="threads-out-of-range",
                hint="leave it out to use every physical core that this process may use",
            )


class Program(Protocol):
    """One compiled component with static shapes. Not for use by two threads at once."""

    @property
    def inputs(self) -> Mapping[str, Array]:
        """Preallocated buffers; write into them (``program.inputs["time"][:] = 999``), never replace them."""
        ...

    @property
    def outputs(self) -> Mapping[str, Array]:
        """Preallocated buffers; valid after `run` until the next `run`."""
        ...

    def run(self) -> None:
        """One call of the component, blocking."""
        ...


class Backend(Protocol):
    """A compiler and its runtime for one kind of device."""

    name: ClassVar[str]
    """The part before the colon of a target."""
    extra: ClassVar[str]
    """The pip extra of this project that installs it."""
    precisions: ClassVar[tuple[Precision, ...]]
    """What `CompileOptions.precision` may be, the default first."""
    bit_exact_batches: ClassVar[bool]
    """Whether an image promises the same bits in every batch and at every position of it (float32 only). `compile` then
    always builds batch 1, compares every other batch with it bit for bit and leaves out what differs."""
    joins_batches: ClassVar[bool]
    """Whether one compiled component serves all batches. If not, `compile` is called once for each."""
    typed_graphs: ClassVar[bool]
    """Whether a component computes in the types of its graph. `compile` then gets a graph in the precision that was asked for
    (`distill_rt.export.precision`); else a float32 graph, and the backend chooses the arithmetic."""
    can_refit: ClassVar[bool]
    """Whether it is a `RefittingBackend`."""
    runs_on: ClassVar[Literal["host", "cuda"]]
    """Where programs read and write: in NumPy memory, or in the memory of a CUDA device."""
    rewrites: ClassVar[tuple[str, ...]]
    """Graph passes (`distill_rt.export.rewrites.COMPILE_PASSES`, name/version) that make the exported graph faster here."""

    @property
    def device(self) -> str:
        """The part of a target after the colon."""
        ...

    def unavailable(self) -> str | None:
        """Which package is missing, or None. Cheap: imports nothing heavy."""
        ...

    def cannot_build(self) -> str | None:
        """Why this machine cannot compile for the target although the package is there, or None. Cheap."""
        ...

    def cannot_run(self) -> str | None:
        """Why engines for the target do not run on this machine although the package is there, or None. Cheap.

        Such an engine can still be compiled if `cannot_build` says None; its gate then runs on the target.
        """
        ...

    def machine(self) -> str:
        """What engines for the target run on here, in words: the processor, or the GPU."""
        ...

    def check(self, options: CompileOptions) -> None:
        """Refuse options that this backend or this processor cannot honour.

        Raises:
            TargetError: says what is possible here.
        """
        ...

    def settings(self, options: CompileOptions) -> dict[str, Any]:
        """Every engine setting that is pinned, JSON values; recorded in the engine and part of the fingerprint."""
        ...

    def fingerprint_parts(self, options: CompileOptions) -> dict[str, Any]:
        """What of this machine decides the engine: compiler version, processor features, `settings` (JSON values)."""
        ...

    def compile(
        self,
        onnx_path: Path,
        component: Component,
        batches: Sequence[int],
        out_dir: Path,
        stem: str,
        options: CompileOptions,
    ) -> tuple[str, ...]:
        """Compile one graph and write it.

        Args:
            onnx_path: the graph, B dynamic.
            batches: values of B, ascending; exactly one unless `joins_batches`.
            out_dir, stem: files are named ``<stem>.*`` in `out_dir`.

        Returns:
            Names of the files, relative to `out_dir`; the first one is what `load` opens.

        Raises:
            TargetError: the compiler refuses the graph, or cannot honour the options.
        """
        ...

    def add_kernels(self, directory: Path) -> None:
        """Put what an engine's runtime launches around the networks into the engine, unless this package brings it.

        Raises:
            TargetError: the kernels cannot be compiled here.
        """
        ...

    def load(
        self,
        directory: Path,
        files: Sequence[str],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batch: int,
        options: CompileOptions,
    ) -> Program:
        """Load what `compile` wrote.

        Raises:
            TargetError: the runtime refuses the files.
        """
        ...


class RefittingBackend(Backend, Protocol):
    """A backend whose compiled components take other weights of the same network: seconds instead of a build."""

    def refit(
        self,
        directory: Path,
        files: Sequence[str],
        component: Component,
        weights: Mapping[str, Array],
        out_dir: Path,
        stem: str,
    ) -> tuple[str, ...]:
        """Write a copy of what `compile` wrote with other weights.

        Args:
            directory, files: of an engine that was compiled with `CompileOptions.refittable`.
            weights: every initializer of the component's weight manifest by name, float32.
            out_dir, stem: as for `compile`.

        Raises:
            UsageError: it was not compiled for that, or a weight is missing or has another size.
            TargetError: the library refuses.
        """
        ...


def network_batch(spec: StudentSpec, num_images: int) -> int:
    """Evaluations in one network call for `num_images` images: cfg runs [uncond, cond] as one batch of twice the size."""
    return 2 * num_images if spec.guidance.mode == "cfg" else num_images


def component_batch(spec: StudentSpec, component: str, num_images: int) -> int:
    """Rows in one call of a component for `num_images` images: cfg doubles those of networks, nothing else."""
    return network_batch(spec, num_images) if component.startswith("network") else num_images


def component_batches(component: str, batches: Sequence[int], *, joined: bool) -> tuple[int, ...]:
    """The numbers of images, of an engine's ascending `batches`, that a component is compiled for.

    The text encoder runs one prompt at a time (`distill_rt.runtime.text_cache`), so a file of its own for every batch would
    never be read; one file that serves all batches (`Backend.joins_batches`) costs nothing more.
    """
    return tuple(batches) if joined or component != TEXT_ENCODER else tuple(batches[:1])


def allocate(specs: Sequence[TensorSpec], batch: int) -> dict[str, Array]:
    """Zeroed, cache-line aligned buffers for tensors with B = `batch`."""
    return {spec.name: _aligned_zeros(spec.concrete(batch), np.dtype(spec.dtype)) for spec in specs}


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    num_bytes = int(np.prod(shape)) * dtype.itemsize
    raw = np.zeros(num_bytes + CACHE_LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % CACHE_LINE_BYTES
    return raw[start : start + num_bytes].view(dtype).reshape(shape)
