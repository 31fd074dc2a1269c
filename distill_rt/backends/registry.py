"""Targets by name: ``openvino:cpu``, ``onnxruntime:cpu``, ``auto``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from distill_rt.backends.base import Backend
from distill_rt.core.errors import TargetError, UsageError

BACKENDS: Mapping[str, str] = {
    # Order is preference: `auto` takes the first that this machine can use.
    "openvino:cpu": "distill_rt.backends.openvino:OpenVINO",
    "onnxruntime:cpu": "distill_rt.backends.onnxruntime:OnnxRuntime",
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
        if text not in BACKENDS:
            raise UsageError(
                f"there is no target {text!r}; targets are {', '.join([*BACKENDS, AUTO])}",
                code="target-unknown",
                hint="choose one of these (command line: --target)",
                details={"targets": [*BACKENDS, AUTO]},
            )
        backend, _, device = text.partition(":")
        return cls(backend=backend, device=device)


def backend_for(target: Target) -> Backend:
    """The backend of a target, whether or not this machine can use it."""
    module, _, name = BACKENDS[str(target)].partition(":")
    backend: Backend = getattr(importlib.import_module(module), name)()
    return backend


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
    raise TargetError(
        f"target {text} cannot be used on this machine: {reason}",
        code="target-unavailable",
        hint=f"pip install 'distill-rt[{extra}]'",
    )
