"""distill-rt: distil a diffusion teacher into a few-step student and run it with low latency.

The public API, imported on first use, so that ``import distill_rt`` costs nothing and generating never sees torch::

    import distill_rt as drt

    student = drt.load_student("runs/student")                        # torch
    drt.export("runs/student", "digits.bundle")                       # torch, onnx
    drt.compile("digits.bundle", "openvino:cpu", "digits.engine")     # the target's own package
    pipe = drt.load("digits.engine")                                  # numpy and the target's package, nothing else
    images = pipe.generate(labels=[3], seed=7, num_images=16).images  # uint8 (B, H, W, C)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill_rt.core.errors import DistillError
    from distill_rt.export import compile_bundle as compile
    from distill_rt.export import export_student as export
    from distill_rt.models import load_student
    from distill_rt.runtime import Pipeline, Request, Result, load

__all__ = ["load", "load_student", "export", "compile", "Pipeline", "Request", "Result", "DistillError"]

_HOMES = {
    "load": ("distill_rt.runtime", "load"),
    "Pipeline": ("distill_rt.runtime", "Pipeline"),
    "Request": ("distill_rt.runtime", "Request"),
    "Result": ("distill_rt.runtime", "Result"),
    "load_student": ("distill_rt.models", "load_student"),
    "compile": ("distill_rt.export", "compile_bundle"),
    "DistillError": ("distill_rt.core.errors", "DistillError"),
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("distill-rt")
    if name == "export":  # the sub-package, which can be called: importing it puts it under this name in any case
        return importlib.import_module("distill_rt.export")
    if name not in _HOMES:
        raise AttributeError(f"module 'distill_rt' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    value = getattr(importlib.import_module(module), attribute)
    globals()[name] = value  # found without this function from now on
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
