"""A graph pass: a named, versioned, pure function on an `onnx_ir` model.

A pass that runs at compile time is named by the backend that wants it as ``name/version``, so its version is part of the
engine's fingerprint; those that made a bundle's trajectory graph are listed in the bundle.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_ir as ir

LONGEST_SETTINGS = 60
"""Characters of settings that an identity still spells out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pass:
    """One graph transformation.

    Args:
        name: what it does, in kebab case.
        version: raise it when the same model starts to give another result.
        function: ``function(model, **settings)``; it owns the model that it gets and may change it in place.
        settings: JSON values; part of what the pass is.
    """

    name: str
    version: int
    function: Callable[..., ir.Model]
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> str:
        """``name/version``, with the settings behind it if there are any: written out, or their digest if that is long."""
        settings = ",".join(f"{key}={value}" for key, value in sorted(self.settings.items()))
        if len(settings) > LONGEST_SETTINGS:
            settings = hashlib.sha256(settings.encode()).hexdigest()[:16]
        return f"{self.name}/{self.version}" + (f"({settings})" if settings else "")

    def __call__(self, model: ir.Model) -> ir.Model:
        """The transformed model. The argument stays as it is; tensors are shared, not copied."""
        return self.function(model.clone(), **self.settings)


def run_passes(model: ir.Model, passes: Sequence[Pass]) -> ir.Model:
    """The passes, in order."""
    for step in passes:
        model = step(model)
    return model


def identities(passes: Sequence[Pass]) -> list[str]:
    """What a manifest or a fingerprint says about a list of passes."""
    return [step.identity for step in passes]
