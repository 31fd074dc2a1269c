"""Targets by name: ``openvino:cpu``, ``onnxruntime:cpu``, ``tensorrt:sm90``, ``tensorrt-rtx:sm86+sm89``,
``inductor:cuda``, ``auto``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from distill_rt.backends.base import Backend
from distill_rt.core.errors import TargetError, UsageError

BACKENDS: Mapping[str, str] = {
    # Order is preference: `auto` takes the first that this machine can use.
    "openvino:cpu": "distill_rt.backends.openvino:OpenVINO",
    "onnxruntime:cpu": "distill_rt.backends.onnxruntime:OnnxRuntime",
}
ON_REQUEST: Mapping[str, str] = {
    # Never taken by `auto`: they need torch at run time.
    "inductor:cuda": "distill_rt.backends.inductor.backend:InductorCuda",
    "inductor:cpu": "distill_rt.backends.inductor.backend:InductorCpu",
}
FAMILIES: Mapping[str, str] = {
    # The device is a compute capability: the constructor takes it, and knows which there are.
    "tensorrt": "distill_rt.backends.tensorrt.backend:TensorRT",
    "tensorrt-rtx": "distill_rt.backends.tensorrt.backend:TensorRTRTX",
}
AUTO = "auto"


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """Where an engine runs: a backend and its device, written ``backend:device``."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}:{self.device}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read ``backend:device``.

        Raises:
            UsageError: no such target; the message lists those that exist.
        """
        backend, _, device = text.partition(":")
        if text not in BACKENDS and text not in ON_REQUEST and backend not in FAMILIES:
            names = [*BACKENDS, *ON_REQUEST, *(f"{family}:smXX" for family in FAMILIES), AUTO]
            raise UsageError(
                f"there is no target {text!r}; targets are {', '.join(names)}",
                code="target-unknown",
                hint="choose one of these (command line: --target)",
                details={"targets": names},
            )
        if backend in FAMILIES:
            device = _load(FAMILIES[backend])(device).device  # one spelling of sm89+sm86
        return cls(backend=backend, device=device)


def backend_for(target: Target) -> Backend:
    """The backend of a target, whether or not this machine can use it."""
    family = FAMILIES.get(target.backend)
    named = {**BACKENDS, **ON_REQUEST}
    backend: Backend = _load(named[str(target)])() if family is None else _load(family)(target.device)
    return backend


def _load(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def resolve_target(text: str) -> tuple[Target, Backend]:
    """A target that this machine can use, and its backend. ``auto`` takes the best.

    Raises:
        UsageError: no such target.
        TargetError: this machine cannot use it, or none at all; the message says why.
    """
    names = list(BACKENDS) if text == AUTO else [text]
    reasons = {}
    for name in names:
        target = Target.parse(name)
        backend = backend_for(target)
        reason = backend.unavailable()
        if reason is None:
            return target, backend
        reasons[name] = (reason, backend.extra)
    if text == AUTO:
        why = "; ".join(f"{name}: {reason}" for name, (reason, _) in reasons.items())
        raise TargetError(
            f"no target can be used on this machine: {why}",
            code="no-target",
            hint="pip install 'distill-rt[cpu]'",
            details={name: reason for name, (reason, _) in reasons.items()},
        )
    reason, extra = reasons[text]
    also = backend.cannot_build()  # who installs the package should not learn only then that it does not help here
    raise TargetError(
        f"target {text} cannot be used on this machine: {reason}" + (f"; and {also}" if also else ""),
        code="target-unavailable",
        hint=f"pip install 'distill-rt[{extra}]'",
    )
