"""Which TensorRT: the imported package, its version, what it has, and what it logs.

`tensorrt` 10.9 to 11.x and `tensorrt_rtx` share one object model. What only some versions have is listed in `PROBES` under a
name, and used only behind `Library.has(name)`; a test holds this against the recorded surfaces of five releases.
Flags are addressed by name: their numbers changed between releases.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from distill_rt.core.errors import TargetError
from distill_rt.core.optional import require

Flavour = Literal["tensorrt", "tensorrt_rtx"]

MINIMUM: Mapping[Flavour, tuple[int, int]] = {
    # 10.9 is the first whose parser takes GroupNormalization of opset 21, which the exporter writes.
    "tensorrt": (10, 9),
    "tensorrt_rtx": (1, 7),
}
EXTRAS: Mapping[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
TITLES: Mapping[Flavour, str] = {"tensorrt": "TensorRT", "tensorrt_rtx": "TensorRT-RTX"}

PROBES: Mapping[str, tuple[str, ...]] = {
    "attention-layers": (  # TensorRT 10.14 and later, TensorRT-RTX
        "LayerType.ATTENTION_INPUT",
        "IAttentionInputLayer.attention",
        "IAttention.decomposable",
    ),
    "compute-capabilities": (  # TensorRT-RTX: which GPUs a plan is for
        "ComputeCapability",
        "IBuilderConfig.num_compute_capabilities",
        "IBuilderConfig.set_compute_capability",
    ),
    "user-allocation": ("BuilderFlag.REQUIRE_USER_ALLOCATION",),  # TensorRT-RTX: capturable in a CUDA graph
    "engine-validity": (  # TensorRT-RTX: asks whether a plan fits before it is deserialised
        "Runtime.get_engine_validity",
        "EngineValidity.INVALID",
        "EngineInvalidityDiagnostics",
    ),
    "runtime-config": (  # TensorRT 10.16 and later, TensorRT-RTX
        "ICudaEngine.create_runtime_config",
        "IRuntimeConfig.set_execution_context_allocation_strategy",
    ),
    "jit": (  # TensorRT-RTX: kernels are compiled when a context is made
        "IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy",
        "IRuntimeConfig.cuda_graph_strategy",
        "IRuntimeConfig.create_runtime_cache",
        "IRuntimeConfig.set_runtime_cache",
        "IRuntimeConfig.get_runtime_cache",
        "IRuntimeCache.deserialize",
        "IRuntimeCache.serialize",
        "DynamicShapesKernelSpecializationStrategy.EAGER",
        "CudaGraphStrategy.DISABLED",
    ),
    "capturability": ("IExecutionContext.is_stream_capturable",),  # TensorRT-RTX
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Library:
    """An imported TensorRT package.

    Args:
        trt: the module.
        flavour: its name.
    """

    trt: Any
    flavour: Flavour

    @property
    def version(self) -> str:
        return str(self.trt.__version__)

    @property
    def title(self) -> str:
        """Name and version, for people."""
        return f"{TITLES[self.flavour]} {self.version}"

    @property
    def compiler(self) -> str:
        """Name and version, for fingerprints: a plan belongs to exactly one release."""
        return f"{self.flavour} {self.version}"

    def has(self, probe: str) -> bool:
        """Whether this release has everything that `PROBES` lists under a name."""
        return all(self._has_name(name) for name in PROBES[probe])

    def _has_name(self, dotted: str) -> bool:
        value = self.trt
        for part in dotted.split("."):
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True


def load_library(flavour: Flavour) -> Library:
    """Import one of the two packages.

    Raises:
        TargetError: not installed, broken, too old, or the other one is in this process already.
    """
    (other,) = set(MINIMUM) - {flavour}
    if other in sys.modules:
        raise TargetError(
            f"{TITLES[flavour]} cannot be used in a process that has imported {TITLES[other]}: both define the same classes",
            code="library-conflict",
            hint="use another process for the second target",
        )
    trt: Any = require(flavour, extra=EXTRAS[flavour])
    library = Library(trt=trt, flavour=flavour)
    numbers = tuple(int(number) for number in re.findall(r"\d+", library.version)[:2])
    if numbers < MINIMUM[flavour]:
        least = ".".join(map(str, MINIMUM[flavour]))
        raise TargetError(
            f"{library.title} is too old: {least} or later is needed",
            code="library-too-old",
            hint=f"pip install --upgrade 'distill-rt[{EXTRAS[flavour]}]'",
        )
    return library
