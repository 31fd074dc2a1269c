"""Targets ``tensorrt:sm90`` and ``tensorrt-rtx:sm89``: one compiled plan per component, for all batches.

TensorRT-RTX builds for its target anywhere and compiles kernels on the target when it loads. TensorRT measures kernels while
it builds, so it builds on the target only. What decides an engine is the target and the library's version, never the machine
that built it: a TensorRT-RTX engine from a laptop has the fingerprint of one from the target.

Not run on a GPU yet: everything after the build.
"""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from distill_rt.backends.base import Array, CompileOptions
from distill_rt.backends.cache import engines_directory
from distill_rt.backends.cuda.backend import GpuBackend
from distill_rt.backends.cuda.kernels import put_kernels
from distill_rt.backends.cuda.programs import DeviceProgram
from distill_rt.backends.cuda_device import CudaDevice, cuda_devices
from distill_rt.backends.tensorrt.builder import BuildOptions, build_plan, build_settings
from distill_rt.backends.tensorrt.capability import (
    RTX_CAPABILITIES,
    TENSORRT_CAPABILITIES,
    check_arithmetic,
    parse_capabilities,
)
from distill_rt.backends.tensorrt.library import TITLES, Flavour, load_library
from distill_rt.backends.tensorrt.plan import PLAN_SUFFIX, Plan, PlanInfo, open_plan, read_info, write_plan
from distill_rt.backends.tensorrt.profiles import make_profiles
from distill_rt.backends.tensorrt.program import TensorRTProgram
from distill_rt.backends.tensorrt.refit import refit_plan, refittable_weights
from distill_rt.core.artifacts import EIGHT_BIT, Component, Precision
from distill_rt.core.errors import TargetError, UsageError
from distill_rt.core.optional import installed
from distill_rt.core.spec import TensorSpec
from distill_rt.kernels.aot import source_digest


class TensorRT(GpuBackend):
    """Target ``tensorrt:smXX``. `TensorRTRTX` differs in its class variables and in where it builds."""

    name: ClassVar[str] = "tensorrt"
    flavour: ClassVar[Flavour] = "tensorrt"
    extra: ClassVar[str] = "tensorrt"
    devices: ClassVar[tuple[int, ...]] = TENSORRT_CAPABILITIES
    precisions: ClassVar[tuple[Precision, ...]] = ("fp16", "bf16", "fp32", "fp8", "int8")
    bit_exact_batches: ClassVar[bool] = False
    joins_batches: ClassVar[bool] = True
    typed_graphs: ClassVar[bool] = True
    can_refit: ClassVar[bool] = True
    # GroupNormalization stays whole: TensorRT fuses it with the SiLU that follows.
    rewrites: ClassVar[tuple[str, ...]] = ()
    several_devices: ClassVar[bool] = False

    def __init__(self, device: str) -> None:
        self.capabilities = parse_capabilities(device, self.devices, target=self.name, several=self.several_devices)
        self.device = "+".join(f"sm{number}" for number in self.capabilities)
        super().__init__(self.capabilities)

    # -- what this machine can do ----------------------------------------------------------------------------------------

    def unavailable(self) -> str | None:
        return None if installed(self.flavour) else f"package {self.flavour!r} is not installed"

    def cannot_build(self) -> str | None:
        missing = self._no_matching_gpu()
        return missing and f"{TITLES[self.flavour]} measures kernels on the GPU that it builds for, and {missing}"

    def cannot_run(self) -> str | None:
        missing = next((name for name in ("cuda.bindings", "cuda.core") if not installed(name)), None)
        return self._no_matching_gpu() or (missing and f"package {missing.replace('.', '-')!r} is not installed")

    def check(self, options: CompileOptions) -> None:
        check_arithmetic(options.precision, self.capabilities, target=f"{self.name}:{self.device}")
        if options.refittable and options.precision in EIGHT_BIT:
            raise TargetError(
                f"a plan in {options.precision} cannot take other weights: its scales belong to those that it was made from",
                code="refit-unsupported",
                hint="leave --refittable out, or use --precision fp16",
            )

    def _no_matching_gpu(self) -> str | None:
        devices, reason = cuda_devices()
        if reason:
            return f"this machine has no usable GPU: {reason}"
        if self._matching_gpu(devices) is None:
            return f"this machine has {', '.join(map(str, devices))}, not {self.device.replace('+', ' or ')}"
        return None

    def _matching_gpu(self, devices: Sequence[CudaDevice]) -> CudaDevice | None:
        return next((device for device in devices if device.capability in self.capabilities), None)

    # -- what decides an engine ------------------------------------------------------------------------------------------

    def settings(self, options: CompileOptions) -> dict[str, Any]:
        return {
            "precision": options.precision,
            "capabilities": list(self.capabilities),
            "profiles": "a point per batch, and one range over them",
            "refittable": options.refittable,
            **build_settings(load_library(self.flavour)),
        }

    def fingerprint_parts(self, options: CompileOptions) -> dict[str, Any]:
        return {
            "compiler": load_library(self.flavour).compiler,
            "settings": self.settings(options),
            "kernels": source_digest(),
        }

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
        library = load_library(self.flavour)
        profiles = make_profiles([{"B": batch} for batch in batches])
        build = BuildOptions(
            capabilities=self.capabilities,
            refittable=refittable_weights(library, onnx_path, component) if options.refittable else (),
            timing_cache=self._timing_cache(library.version),
        )
        start = time.perf_counter()
        built = build_plan(library, onnx_path, component.inputs, profiles, build)
        info = PlanInfo(
            library=library.compiler,
            capabilities=self.capabilities,
            profiles=profiles,
            num_attentions=built.num_attentions,
            num_fused_attentions=built.num_fused_attentions,
            refittable=build.refittable,
            build_seconds=round(time.perf_counter() - start, 3),
        )
        return write_plan(out_dir, f"{stem}{PLAN_SUFFIX}", built.plan, info)

    def add_kernels(self, directory: Path) -> None:
        put_kernels(directory, self.capabilities)

    def refit(
        self,
        directory: Path,
        files: Sequence[str],
        component: Component,
        weights: Mapping[str, Array],
        out_dir: Path,
        stem: str,
    ) -> tuple[str, ...]:
        """See `RefittingBackend.refit`. Not run on a GPU yet."""
        self.driver().use()
        plan = self.open_plan(directory, files, component.inputs, component.outputs)
        if not plan.info.refittable:
            raise UsageError(
                f"{directory / files[0]} was not compiled to take other weights",
                code="refit-unsupported",
                hint="compile it once with --refittable",
            )
        start = time.perf_counter()
        refit_plan(plan, weights)
        engine = plan.engine
        info = dataclasses.replace(plan.info, build_seconds=round(time.perf_counter() - start, 3))
        return write_plan(out_dir, f"{stem}{PLAN_SUFFIX}", bytes(engine.serialize()), info)

    def open_file(
        self, directory: Path, files: Sequence[str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> Plan:
        return self.open_plan(directory, files, inputs, outputs)

    def make_program(
        self, opened: Plan, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], batch: int
    ) -> DeviceProgram:
        return TensorRTProgram(opened, self.driver(), inputs, outputs, batch, self._jit_cache(opened.library.version))

    def open_plan(
        self, directory: Path, files: Sequence[str], inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> Plan:
        """Deserialise what `compile` wrote, on the current CUDA device.

        Raises:
            TargetError: another library, another GPU, or no GPU.
            ArtifactError: the file is not what it is listed as.
        """
        library = load_library(self.flavour)
        info = read_info(directory, files)
        if info.library != library.compiler:
            raise TargetError(
                f"{directory / files[0]} was built by {info.library}, this is {library.compiler}; plans belong to one release",
                code="engine-stale",
                hint=f"pip install '{info.library.replace(' ', '==')}', or compile it again with --force",
            )
        return open_plan(library, directory / files[0], info, inputs, outputs)

    def _timing_cache(self, version: str) -> Path | None:
        """Measurements belong to one version on one kind of GPU."""
        return self._library_cache("timing", version)

    def _jit_cache(self, version: str) -> Path | None:
        """Plans hold machine code."""
        return None

    def _library_cache(self, folder: str, version: str) -> Path | None:
        device = self._matching_gpu(cuda_devices()[0])
        if device is None:
            return None
        gpu = re.sub(r"\W+", "-", device.name).strip("-").lower()
        return engines_directory().parent / folder / f"{self.flavour}-{version}-{gpu}.cache"


class TensorRTRTX(TensorRT):
    """Target ``tensorrt-rtx:smXX``, several joined by ``+``: GeForce and RTX cards. Builds on any machine."""

    name: ClassVar[str] = "tensorrt-rtx"
    flavour: ClassVar[Flavour] = "tensorrt_rtx"
    extra: ClassVar[str] = "tensorrt-rtx"
    devices: ClassVar[tuple[int, ...]] = RTX_CAPABILITIES
    several_devices: ClassVar[bool] = True

    def cannot_build(self) -> str | None:
        return None

    def check(self, options: CompileOptions) -> None:
        super().check(options)
        missing = self._no_matching_gpu() if options.refittable else None
        if missing is not None:
            raise TargetError(
                f"{TITLES[self.flavour]} builds plans that take other weights only where it can run them, and {missing}",
                code="build-needs-target",
                hint="compile it on its target, or leave --refittable out",
            )

    def _timing_cache(self, version: str) -> Path | None:
        return None  # it measures nothing

    def _jit_cache(self, version: str) -> Path | None:
        return self._library_cache("jit", version)
