"""Strongly typed network + profiles -> plan.

Nothing here sets a precision: the types of the graph do (`distill_rt.export.precision`). What is set is recorded by
`build_settings` and part of the fingerprint. Plans of the same inputs differ in a few bytes between builds, so caches key
on inputs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_rt.backends.tensorrt.attention import count_in_plan
from distill_rt.backends.tensorrt.library import Library
from distill_rt.backends.tensorrt.log import Log
from distill_rt.backends.tensorrt.network import count_attention, parse_network
from distill_rt.backends.tensorrt.profiles import Profile, add_profile
from distill_rt.core.errors import TargetError
from distill_rt.core.spec import TensorSpec

OPTIMIZATION_LEVEL = 3
"""TensorRT's default of 0...5. TensorRT-RTX gives the same plan for every level."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """What a build is told.

    Args:
        capabilities: compute capabilities of the target; TensorRT builds for the GPU that it runs on.
        refittable: initializers whose values may be replaced in the finished plan.
        timing_cache: file with measurements of earlier builds on this GPU (TensorRT only); None uses none.
    """

    capabilities: tuple[int, ...]
    refittable: tuple[str, ...] = ()
    timing_cache: Path | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltPlan:
    """A plan, and what is worth telling about it: attentions of the network and how many of them one kernel computes."""

    plan: bytes
    num_attentions: int
    num_fused_attentions: int | None


def build_plan(
    library: Library,
    onnx_path: Path,
    inputs: Sequence[TensorSpec],
    profiles: Sequence[Profile],
    options: BuildOptions,
) -> BuiltPlan:
    """Build one plan. TensorRT-RTX needs no GPU for it, TensorRT measures on the one that it builds for.

    Args:
        onnx_path: the graph in the precision of the plan.
        inputs: its inputs, with the symbols that `profiles` bind.

    Raises:
        TargetError: the graph, a profile or an option is refused; the message is TensorRT's own, its log in the details.
    """
    trt = library.trt
    log = Log(library)
    # Everything stays in a local variable until the plan exists: TensorRT keeps no references of its own.
    builder = trt.Builder(log.logger)
    network = parse_network(library, log, builder, onnx_path)
    config = builder.create_builder_config()
    _set_flags(library, config)
    _set_capabilities(library, log, config, options.capabilities)
    cache = _use_timing_cache(library, config, options.timing_cache)
    if options.refittable:
        _mark_refittable(library, log, network, config, options.refittable)
    for expected, profile in enumerate(profiles):
        if add_profile(builder, config, inputs, profile) != expected:
            raise log.refuse(f"refuses the shapes {profile.low} to {profile.high}", hint="compile for other batches")
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise log.refuse(f"cannot compile {onnx_path.name}", hint=_advice(log))
    if cache is not None and options.timing_cache is not None:
        _save(options.timing_cache, bytes(cache.serialize()))
    data = bytes(plan)
    rtx = library.flavour == "tensorrt_rtx"
    return BuiltPlan(
        plan=data,
        num_attentions=count_attention(library, network),
        num_fused_attentions=count_in_plan(data, len(profiles)) if rtx else None,
    )


def unknown_weights(library: Library, onnx_path: Path, names: Sequence[str]) -> list[str]:
    """Those of the initializers that TensorRT cannot mark as refittable; needs no GPU."""
    log = Log(library)
    trt = library.trt
    builder = trt.Builder(log.logger)
    network = parse_network(library, log, builder, onnx_path)
    return [name for name in names if not network.mark_weights_refittable(name)]


def build_settings(library: Library) -> dict[str, Any]:
    """What `build_plan` always sets, JSON values."""
    rtx = library.flavour == "tensorrt_rtx"
    return {
        "strongly_typed": True,
        "tf32": False,
        "max_aux_streams": 0,
        "user_allocation": library.has("user-allocation"),
        "optimization_level": None if rtx else OPTIMIZATION_LEVEL,
        "hardware_compatibility": None if rtx else "SAME_COMPUTE_CAPABILITY",
    }


def _set_flags(library: Library, config: Any) -> None:
    trt = library.trt
    # fp32 means float32: TensorFloat-32 is on by default and keeps 10 bits of the mantissa.
    config.clear_flag(trt.BuilderFlag.TF32)
    # One stream: a captured graph of a few steps gains nothing from forks, and the capture is simpler.
    config.max_aux_streams = 0
    if library.has("user-allocation"):
        # Without it TensorRT-RTX allocates while it runs, which a captured graph must not.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if library.flavour == "tensorrt":
        config.builder_optimization_level = OPTIMIZATION_LEVEL
        # The target names a compute capability, so the plan must run on every GPU that has it. What it costs against a plan for
        # one model of GPU is not measured yet.
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.SAME_COMPUTE_CAPABILITY


def _set_capabilities(library: Library, log: Log, config: Any, capabilities: Sequence[int]) -> None:
    if not library.has("compute-capabilities"):
        return  # TensorRT builds for the GPU at hand; the backend has checked that it is the target
    trt = library.trt
    config.num_compute_capabilities = len(capabilities)
    for index, number in enumerate(capabilities):
        # By name: the enum makes a nameless member of every integer, which fails much later.
        capability = getattr(trt.ComputeCapability, f"SM{number}", None)
        if capability is None:
            raise TargetError(
                f"{library.title} does not know sm{number}",
                code="target-unsupported",
                hint="upgrade it: pip install --upgrade 'distill-rt[tensorrt-rtx]'",
                details={"known": sorted(trt.ComputeCapability.__members__)},
            )
        if not config.set_compute_capability(capability, index):
            raise log.refuse(f"cannot compile for sm{number}", hint="choose another device", code="target-unsupported")


def _use_timing_cache(library: Library, config: Any, path: Path | None) -> Any:
    """Measurements of earlier builds; TensorRT-RTX measures nothing."""
    if path is None or library.flavour != "tensorrt":
        return None
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    # A cache of another version or GPU is refused: start an empty one in its place.
    if cache is None or not config.set_timing_cache(cache, False):
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache


def _save(path: Path, data: bytes) -> None:
    """Whole or not at all: several builds may end at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    partial.write_bytes(data)
    os.replace(partial, path)


def _mark_refittable(library: Library, log: Log, network: Any, config: Any, names: Sequence[str]) -> None:
    trt = library.trt
    config.set_flag(trt.BuilderFlag.REFIT_INDIVIDUAL)
    for name in names:
        if not network.mark_weights_refittable(name):
            raise log.refuse(
                f"has no weight {name} to refit",
                hint="compile without --refit, or export the bundle again",
                code="refit-unsupported",
            )


def _advice(log: Log) -> str:
    text = " ".join(log.errors())
    if "HW-specific datatypes" in text:
        return "this GPU lacks the type: use --precision fp16"
    if "workspace" in text or "Could not find any implementation" in text:
        return "compile for smaller batches, or on a GPU with more memory"
    if "is_decomposable" in text or "dedicated kernel" in text:
        return "an attention has no kernel here: use --precision fp16, or export with opset 21"
    return "choose another target, or --precision fp32"
