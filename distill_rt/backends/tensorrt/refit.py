"""Other weights in a finished plan: a LoRA merged, a checkpoint swapped, without compiling again.

The bundle's weight manifest says which initializer holds which parameter of the student; an initializer keeps its name on the
way into the plan, in the type that `distill_rt.export.precision` gave it. TensorRT-RTX 1.7 builds refittable plans only where
there is a GPU, so nothing here has run yet beyond the names: which of them TensorRT knows is tested without one.

Set every weight of the manifest, not only what changed: TensorRT-RTX is known not to ask for weights of independent
sub-engines (https://github.com/pytorch/TensorRT/pull/4198). Merge a LoRA into the base weights each time, never on top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.tensorrt.builder import unknown_weights
from distill_rt.backends.tensorrt.library import Library
from distill_rt.backends.tensorrt.plan import Plan
from distill_rt.core.artifacts import Component
from distill_rt.core.errors import UsageError

Array = NDArray[Any]


def named_weights(component: Component, parameters: Mapping[str, Array]) -> dict[str, Array]:
    """Initializer -> value, from parameter -> value.

    Args:
        component: brings the weight manifest.
        parameters: every parameter of the student by its name, with its shape.

    Raises:
        UsageError: a parameter of the manifest is missing.
    """
    missing = sorted(set(component.initializers) - set(parameters))
    if missing:
        raise UsageError(
            f"{len(missing)} of {len(component.initializers)} weights are missing, the first is {missing[0]}",
            code="weights-missing",
            hint="give every weight of the student, not only those that changed",
            details={"missing": missing[:20]},
        )
    return {initializer: parameters[name] for name, initializer in component.initializers.items()}


def refittable_weights(library: Library, onnx_path: Path, component: Component) -> tuple[str, ...]:
    """Initializers of the manifest that TensorRT would let be replaced; needs no GPU."""
    names = tuple(component.initializers.values())
    unknown = set(unknown_weights(library, onnx_path, names))
    return tuple(name for name in names if name not in unknown)


def refit_plan(plan: Plan, values: Mapping[str, Array], names: Sequence[str] | None = None) -> None:
    """Replace the weights of a deserialised plan in place; contexts stay valid. Not run on a GPU yet.

    No work may be pending on the plan. If it fails, some weights may have been replaced: load the plan again.

    Args:
        values: by initializer, float32, C order.
        names: those to set; None sets every refittable one.

    Raises:
        UsageError: a weight is missing or has another number of elements.
        TargetError: TensorRT refuses; the message is its own.
    """
    library, log = plan.library, plan.log
    trt = library.trt
    refitter = trt.Refitter(plan.engine, log.logger)
    kept = []  # TensorRT copies nothing before refit_cuda_engine
    for name in plan.info.refittable if names is None else names:
        prototype = refitter.get_weights_prototype(name)
        value = values.get(name)
        if value is None or value.size != prototype.size:
            found = "it is missing" if value is None else f"it has {value.size} elements"
            raise UsageError(
                f"weight {name} needs {prototype.size} elements, but {found}",
                code="weights-mismatch",
                hint="give the weights of the student that the plan was compiled from",
            )
        data = _in_type(trt, value, prototype.dtype)
        kept.append(data)
        weights = trt.Weights(prototype.dtype, data.ctypes.data, data.size)
        if not refitter.set_named_weights(name, weights):
            raise log.refuse(f"does not take weight {name}", hint="compile again", code="refit-refused")
    missing = refitter.get_missing_weights()
    if missing:
        raise log.refuse("lacks weights", hint="compile again", code="refit-refused", reasons=[", ".join(missing)])
    if not refitter.refit_cuda_engine():
        raise log.refuse("does not refit the plan", hint="load the engine again", code="refit-refused")


def _in_type(trt: Any, value: Array, dtype: Any) -> Array:
    """float32 numbers in the bits of a TensorRT type."""
    value = np.ascontiguousarray(value, np.float32)
    if dtype == trt.DataType.HALF:
        return value.astype(np.float16)
    if dtype == trt.DataType.BF16:
        # Round to nearest even on the upper half; weights are finite, which export has checked.
        bits = value.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return value
