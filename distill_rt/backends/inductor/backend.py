"""Targets ``inductor:cpu`` and ``inductor:cuda``: one AOTInductor package for each component and batch.

A package holds machine code for the processor or GPU that built it, and no Python: loading it compiles nothing. It still needs
torch, whose kernels it calls. Not run on a GPU yet: everything on ``inductor:cuda``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from distill_rt.backends import processor
from distill_rt.backends.base import CompileOptions, Program, allocate
from distill_rt.backends.cuda.backend import GpuBackend
from distill_rt.backends.cuda.kernels import put_kernels
from distill_rt.backends.cuda.programs import DeviceProgram, Graph
from distill_rt.backends.cuda_device import CudaDevice, cuda_devices
from distill_rt.backends.inductor.settings import cpu_settings, cuda_settings
from distill_rt.backends.inductor.toolchain import (
    missing_bindings,
    missing_compiler,
    missing_cuda,
    missing_triton,
    torch_cuda_version,
)
from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.errors import TargetError
from distill_rt.core.optional import installed, require
from distill_rt.core.spec import TensorSpec
from distill_rt.kernels.aot import source_digest

if TYPE_CHECKING:
    from distill_rt.backends.inductor.package import Package

BF16_INSTRUCTION_SETS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})
OLDEST_BF16_CAPABILITY = 80
OLDEST_CAPABILITY = 70
"""What Triton, and so inductor, compiles for."""


class Inductor:
    """What both targets have in common."""

    name: ClassVar[str] = "inductor"
    device: ClassVar[str]
    extra: ClassVar[str] = "inductor"
    precisions: ClassVar[tuple[Precision, ...]]
    bit_exact_batches: ClassVar[bool] = False
    joins_batches: ClassVar[bool] = False
    typed_graphs: ClassVar[bool] = True
    can_refit: ClassVar[bool] = False
    # GroupNormalization stays whole: inductor fuses it with what surrounds it.
    rewrites: ClassVar[tuple[str, ...]] = ()

    def unavailable(self) -> str | None:
        return None if installed("torch") else "package 'torch' is not installed"

    def check(self, options: CompileOptions) -> None:
        if options.precision not in self.precisions:
            raise TargetError(
                f"inductor:{self.device} computes in {', '.join(self.precisions)}, not in {options.precision}",
                code="precision-unsupported",
                hint="choose one of these (command line: --precision)",
                details={"precisions": list(self.precisions)},
            )

    def _inductor_settings(self, options: CompileOptions) -> dict[str, Any]:
        raise NotImplementedError

    def compile(
        self,
        onnx_path: Path,
        component: Component,
        batches: Sequence[int],
        out_dir: Path,
        stem: str,
        options: CompileOptions,
    ) -> tuple[str, ...]:
        self.check(options)
        (batch,) = batches
        require("torch", extra=self.extra)
        from distill_rt.backends.inductor.package import build_package

        file = f"{stem}.pt2"
        settings = self._inductor_settings(options)
        build_package(onnx_path, component, batch, out_dir / file, device=self.device, settings=settings)
        return (file,)


class InductorCpu(Inductor):
    """Target ``inductor:cpu``."""

    device: ClassVar[str] = "cpu"
    runs_on: ClassVar[Literal["host", "cuda"]] = "host"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "bf16")

    def cannot_build(self) -> str | None:
        return missing_compiler()

    def cannot_run(self) -> str | None:
        return None

    def machine(self) -> str:
        return processor.name()

    def check(self, options: CompileOptions) -> None:
        super().check(options)
        if options.precision == "bf16" and not BF16_INSTRUCTION_SETS & processor.instruction_sets():
            raise TargetError(
                f"this processor ({processor.name()}) has no bfloat16 instructions",
                code="precision-unsupported",
                hint="use --precision fp32",
                details={"precisions": ["fp32"]},
            )

    def settings(self, options: CompileOptions) -> dict[str, Any]:
        return {"precision": options.precision, "num_threads": options.num_threads, **self._inductor_settings(options)}

    def fingerprint_parts(self, options: CompileOptions) -> dict[str, Any]:
        torch = require("torch", extra=self.extra)
        return {
            "compiler": f"torch {torch.__version__}",
            "processor": processor.identity(),
            "settings": self.settings(options),
        }

    def _inductor_settings(self, options: CompileOptions) -> dict[str, Any]:
        return cpu_settings(options.num_threads)

    def add_kernels(self, directory: Path) -> None:
        pass  # `distill_rt.kernels` has them for every processor

    def load(
        self,
        directory: Path,
        files: Sequence[str],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batch: int,
        options: CompileOptions,
    ) -> Program:
        require("torch", extra=self.extra)
        from distill_rt.backends.inductor.package import load_package
        from distill_rt.backends.inductor.programs import InductorProgram

        package = load_package(directory / files[0], device=self.device)
        return InductorProgram(package, allocate(inputs, batch), allocate(outputs, batch), options.num_threads)


class InductorCuda(GpuBackend, Inductor):
    """Target ``inductor:cuda``: the first GPU, for which alone it builds. Not run on a GPU yet."""

    device: ClassVar[str] = "cuda"
    extra: ClassVar[str] = "inductor-cuda"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp16", "bf16", "fp32")

    def __init__(self) -> None:
        super().__init__(None)

    # -- what this machine can do ----------------------------------------------------------------------------------------

    def cannot_build(self) -> str | None:
        return self.cannot_run() or missing_triton() or missing_compiler()

    def cannot_run(self) -> str | None:
        missing = missing_cuda() or missing_bindings()
        if missing is not None:
            return missing
        gpu = _gpu()
        return (
            f"inductor compiles from sm{OLDEST_CAPABILITY} on, not for {gpu}"
            if gpu.capability < OLDEST_CAPABILITY
            else None
        )

    def machine(self) -> str:
        return str(_gpu())

    def check(self, options: CompileOptions) -> None:
        super().check(options)
        devices, _ = cuda_devices()
        if options.precision == "bf16" and devices and devices[0].capability < OLDEST_BF16_CAPABILITY:
            raise TargetError(
                f"{devices[0]} has no bfloat16 arithmetic, which begins with sm{OLDEST_BF16_CAPABILITY}",
                code="precision-unsupported",
                hint="use --precision fp16",
                details={"precisions": ["fp16", "fp32"]},
            )

    # -- what decides an engine ------------------------------------------------------------------------------------------

    def settings(self, options: CompileOptions) -> dict[str, Any]:
        return {"precision": options.precision, **self._inductor_settings(options)}

    def fingerprint_parts(self, options: CompileOptions) -> dict[str, Any]:
        torch = require("torch", extra=self.extra)
        gpu = _gpu()
        return {
            "compiler": f"torch {torch.__version__}",
            "cuda": torch_cuda_version(),
            # By its name too: kernels are chosen by the number of its multiprocessors and what they measure.
            "gpu": {"name": gpu.name, "capability": gpu.capability},
            "settings": self.settings(options),
            "kernels": source_digest(),
        }

    def _inductor_settings(self, options: CompileOptions) -> dict[str, Any]:
        return cuda_settings()

    # -- build and load --------------------------------------------------------------------------------------------------

    def add_kernels(self, directory: Path) -> None:
        put_kernels(directory, [_gpu().capability])

    def open_file(
        self, directory: Path, files: Sequence[str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> Package:
        require("torch", extra=self.extra)
        from distill_rt.backends.inductor.package import load_package

        return load_package(directory / files[0], device=self.device)

    def make_program(
        self, opened: Package, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batch: int
    ) -> DeviceProgram:
        from distill_rt.backends.inductor.device_programs import InductorDeviceProgram

        return InductorDeviceProgram(opened, inputs, outputs, batch, "cuda:0")

    def capture(self, stream: int, record: Callable[[], None]) -> Graph:
        from distill_rt.backends.inductor.device_programs import capture_graph

        return capture_graph(stream, record)


def _gpu() -> CudaDevice:
    """The GPU that torch and the driver take first; asked only where there is one."""
    (first, *_), _ = cuda_devices()
    return first
