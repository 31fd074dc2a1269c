"""Plan files: what stands beside a plan, and a plan on its device.

`PlanInfo` is written beside every plan and read without TensorRT. `open_plan` deserialises on a machine with the GPU; a `Plan`
serves any number of programs (`distill_rt.backends.tensorrt.program`), which share its weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill_rt.backends.tensorrt.library import Library
from distill_rt.backends.tensorrt.log import Log
from distill_rt.backends.tensorrt.profiles import Profile, Sizes, profile_for
from distill_rt.core import codec
from distill_rt.core.directory import write_file
from distill_rt.core.errors import ArtifactError
from distill_rt.core.spec import TensorSpec

REBUILD = "compile it again with --force"
PLAN_SUFFIX = ".plan"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanInfo:
    """What is known about a plan from its build.

    Args:
        library: package and version that built it, the only one that loads it.
        capabilities: compute capabilities that it runs on.
        profiles: in the plan's order.
        num_attentions: attentions of the network.
        num_fused_attentions: those that one kernel computes; None where that cannot be told without a GPU.
        refittable: initializers whose values can be replaced.
        build_seconds: wall time.
    """

    library: str
    capabilities: tuple[int, ...]
    profiles: tuple[Profile, ...]
    num_attentions: int
    num_fused_attentions: int | None
    refittable: tuple[str, ...]
    build_seconds: float


def info_file(plan_file: str) -> str:
    """Name of the file beside a plan."""
    return f"{plan_file}.json"


def write_plan(directory: Path, file: str, plan: bytes, info: PlanInfo) -> tuple[str, ...]:
    """Write a plan and what is known about it; returns the names of both files, the plan first."""
    write_file(directory / file, plan)
    write_file(directory / info_file(file), (json.dumps(codec.to_json(info), indent=1) + "\n").encode())
    return file, info_file(file)


def read_info(directory: Path, files: Sequence[str]) -> PlanInfo:
    """Read what stands beside a plan.

    Args:
        files: of the component, as `write_plan` named them.

    Raises:
        ArtifactError: it is not there or not ours.
    """
    path = directory / info_file(files[0])
    try:
        return codec.from_json(PlanInfo, json.loads(path.read_bytes()), path.name)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{path} does not describe a plan: {error}", code="artifact-damaged", hint=REBUILD
        ) from error


@dataclass(frozen=True, kw_only=True, slots=True, weakref_slot=True)
class Plan:
    """A deserialised plan. `log` and `runtime` must live as long as `engine`, and this keeps them.

    Args:
        engine: ICudaEngine; one execution context per worker, each with its own buffers.
        log: gets TensorRT's messages about every later call; attach them with `log.refuse`.
    """

    library: Library
    info: PlanInfo
    engine: Any
    runtime: Any
    log: Log

    def profile_index(self, sizes: Sizes) -> int | None:
        """The profile to select before shapes are set, None if the plan was not compiled for these sizes."""
        return profile_for(self.info.profiles, sizes)

    def device_memory_bytes(self, profile: int) -> int:
        """Scratch memory of a context, beside inputs, outputs and weights. Not run on a GPU yet."""
        engine = self.engine
        return int(engine.get_device_memory_size_for_profile_v2(profile))


def open_plan(
    library: Library,
    path: Path,
    info: PlanInfo,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> Plan:
    """Deserialise a plan on the current CUDA device. Not run on a GPU yet.

    The caller has verified the file against its manifest: a plan is executable code.

    Raises:
        TargetError: built by another version, for another GPU, cut short, or no GPU; says which.
    """
    trt = library.trt
    log = Log(library)
    runtime = trt.Runtime(log.logger)
    plan = path.read_bytes()
    if library.has("engine-validity"):
        validity, diagnostics = runtime.get_engine_validity(plan)
        if validity == trt.EngineValidity.INVALID:
            raise log.refuse(f"cannot load {path.name}", hint=REBUILD, reasons=_diagnoses(library, diagnostics))
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise log.refuse(f"cannot load {path.name}", hint=REBUILD)
    expected = {tensor.name for tensor in (*inputs, *outputs)}
    found = {engine.get_tensor_name(index) for index in range(engine.num_io_tensors)}
    if found != expected or engine.num_optimization_profiles != len(info.profiles):
        raise ArtifactError(
            f"{path} is not the plan that it is listed as: it has tensors {', '.join(sorted(found))} and "
            f"{engine.num_optimization_profiles} profiles",
            code="artifact-damaged",
            hint=REBUILD,
        )
    return Plan(library=library, info=info, engine=engine, runtime=runtime, log=log)


def _diagnoses(library: Library, bits: int) -> list[str]:
    """The set bits by name, in words where that helps; nothing where TensorRT only says "invalid"."""
    words = {
        "VERSION_MISMATCH": "it was built by another version of TensorRT-RTX",
        "UNSUPPORTED_CC": "it was not built for this GPU",
        "OLD_CUDA_DRIVER": "the NVIDIA driver is too old for it",
        "OLD_CUDA_RUNTIME": "the CUDA runtime is too old for it",
        "INSUFFICIENT_GPU_MEMORY": "the GPU has not enough memory for it",
        "MALFORMED_ENGINE": "it is not a plan, or was cut short",
        "CUDA_ERROR": "CUDA does not answer",
    }
    if not library.has("engine-validity"):
        return []
    members = library.trt.EngineInvalidityDiagnostics.__members__
    return [words.get(name, name) for name, member in members.items() if int(bits) & int(member)]
