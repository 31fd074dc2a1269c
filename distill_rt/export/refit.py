"""Other weights in a compiled engine: a bundle of the same network (a LoRA merged, a later checkpoint) in seconds. No torch.

The engine brings its plans, the bundle its weights, contract and golden outputs. What comes out is the engine that compiling
the bundle would give, with its fingerprint, and it passes the same gate. Not run on a GPU yet.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.base import RefittingBackend
from distill_rt.backends.engine import Engine, open_engine
from distill_rt.backends.fingerprint import differences
from distill_rt.backends.registry import Target
from distill_rt.core.artifacts import Compiled, Component
from distill_rt.core.directory import publish, refuse_existing
from distill_rt.core.errors import UsageError
from distill_rt.export.bundle import Bundle, open_bundle
from distill_rt.export.engine_builder import EngineBuilder
from distill_rt.export.model_file import load_model
from distill_rt.export.progress import Progress, silent

Array = NDArray[Any]


def refit_engine(
    engine: str | Path, bundle: str | Path, out: str | Path, *, force: bool = False, progress: Progress = silent
) -> Path:
    """Write the engine of another bundle with the plans of a compiled one.

    Args:
        engine: compiled with ``refittable`` from a bundle of the same network; stays as it is.
        bundle: brings the weights.
        out: the new engine; must not exist unless `force`.

    Raises:
        UsageError: `out` exists, the engine takes no other weights, or the bundle's network is another one.
        ArtifactError: engine or bundle is missing, damaged or foreign.
        TargetError: the engine does not run on this machine, or its library refuses.
        GateError: the new engine is too far from its student; nothing was published.
    """
    out = Path(out)
    refuse_existing(out, force=force, ours="engine.json")
    progress("verifying engine and bundle")
    source, weights = open_engine(engine, ungated=True), open_bundle(bundle)
    _check(source, weights)
    with publish(out, force=force, ours="engine.json") as directory:
        _Refitter(source, weights, progress).build(directory)
    return out


class _Refitter(EngineBuilder):
    """Fills a directory as compiling the bundle would, from the plans of an engine."""

    def __init__(self, source: Engine, bundle: Bundle, progress: Progress) -> None:
        body = source.body
        super().__init__(bundle, Target.parse(body.target), source.backend, source.options, body.batches, progress)
        self._source = source
        self.activation_bytes = body.options.get("activation_bytes", {})  # the network is the same
        for name, was, now in differences(_network_parts(body.fingerprint_parts), _network_parts(self.parts)):
            raise UsageError(
                f"{source.directory} was compiled with {name} {was}, and a new engine would have {now}",
                code="refit-unsupported",
                hint="compile the bundle",
            )

    def compile_components(self, directory: Path) -> dict[str, dict[int, Compiled]]:
        backend = cast(RefittingBackend, self.backend)
        components: dict[str, dict[int, Compiled]] = {}
        for done, (name, items) in enumerate(self._source.body.components.items()):
            self.progress("new weights", done, len(self._source.body.components))
            component = self.bundle.body.components[name]
            values = _weights(self.bundle.directory / component.file, component)
            files = backend.refit(self._source.directory, items[0].files, component, values, directory, name)
            components[name] = {item.batch: Compiled(batch=item.batch, files=files) for item in items}
        return components


def _check(source: Engine, bundle: Bundle) -> None:
    body, other = source.body, bundle.body
    problem = ""
    if not (source.backend.can_refit and source.options.refittable):
        problem = f"{source.directory} was not compiled to take other weights"
    elif other.mode != "step" or body.mode != "step":
        problem = "a trajectory holds numbers that were computed from its weights"
    elif (body.parts, body.spec.networks, body.spec.guidance.mode) != (
        other.parts,
        other.spec.networks,
        other.spec.guidance.mode,
    ):
        problem = f"{bundle.directory} holds another network than {source.directory}"
    if problem:
        raise UsageError(
            problem, code="refit-unsupported", hint="compile the bundle, with --refittable for the next time"
        )


def _network_parts(parts: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an engine, without what the bundle brings."""
    return {key: value for key, value in parts.items() if key != "bundle"}


def _weights(path: Path, component: Component) -> dict[str, Array]:
    """Every initializer of the weight manifest, float32."""
    model = load_model(path)
    initializers = model.graph.initializers
    found: dict[str, Array] = {}
    for name in component.initializers.values():
        value = initializers[name].const_value
        assert value is not None, name
        found[name] = np.asarray(value.numpy(), np.float32)
    return found
