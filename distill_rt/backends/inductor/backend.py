"""Target ``inductor:cpu``: one AOTInductor package for each component and batch.

A package holds machine code for the processor that built it, and no Python: loading it compiles nothing. It still needs torch,
whose kernels it calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from distill_rt.backends import processor
from distill_rt.backends.base import CompileOptions, Program, allocate
from distill_rt.backends.inductor.settings import cpu_settings
from distill_rt.backends.inductor.toolchain import missing_compiler
from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.errors import TargetError
from distill_rt.core.optional import installed, require
from distill_rt.core.spec import TensorSpec

BF16_INSTRUCTION_SETS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


class InductorCpu:
    """Target ``inductor:cpu``."""

    name: ClassVar[str] = "inductor"
    device: ClassVar[str] = "cpu"
    runs_on: ClassVar[Literal["host", "cuda"]] = "host"
    extra: ClassVar[str] = "inductor"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "bf16")
    bit_exact_batches: ClassVar[bool] = False
    joins_batches: ClassVar[bool] = False
    typed_graphs: ClassVar[bool] = True
    # GroupNormalization stays whole: inductor fuses it with what surrounds it.
    rewrites: ClassVar[tuple[str, ...]] = ()

    # -- what this machine can do ----------------------------------------------------------------------------------------

    def unavailable(self) -> str | None:
        return None if installed("torch") else "package 'torch' is not installed"

    def cannot_build(self) -> str | None:
        return missing_compiler()

    def cannot_run(self) -> str | None:
        return None

    def check(self, options: CompileOptions) -> None:
        self._check_precision(options)
        if options.precision == "bf16" and not BF16_INSTRUCTION_SETS & processor.instruction_sets():
            raise TargetError(
                f"this processor ({processor.name()}) has no bfloat16 instructions",
                code="precision-unsupported",
                hint="use --precision fp32",
                details={"precisions": ["fp32"]},
            )

    def _check_precision(self, options: CompileOptions) -> None:
        if options.precision not in self.precisions:
            raise TargetError(
                f"inductor:{self.device} computes in {', '.join(self.precisions)}, not in {options.precision}",
                code="precision-unsupported",
                hint="choose one of these (command line: --precision)",
                details={"precisions": list(self.precisions)},
            )

    # -- what decides an engine ------------------------------------------------------------------------------------------

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

    # -- build and load --------------------------------------------------------------------------------------------------

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

        path = directory / files[0]
        loader = load_package(path, device=self.device)
        return InductorProgram(loader, allocate(inputs, batch), allocate(outputs, batch), options.num_threads, path)
