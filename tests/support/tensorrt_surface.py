"""Which TensorRT names a source file touches, by reading it: attributes of `trt`, and of variables with agreed names.

The surfaces were read from the real binding packages; they hold names only, so this proves that a name exists in a
release, not what it does.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from distill_rt.backends.tensorrt.library import PROBES

SURFACES: Mapping[str, Mapping[str, Any]] = json.loads(
    (Path(__file__).parent.parent / "data" / "tensorrt-api.json").read_text()
)
"""Release -> {classes: {name: members}, enums: {name: members}, functions: names}."""

VARIABLES: Mapping[str, tuple[str, ...]] = {
    # In our sources a variable or attribute with this name holds an object of one of these classes, and nothing else does.
    "builder": ("Builder",),
    "network": ("INetworkDefinition",),
    "config": ("IBuilderConfig",),
    "native": ("IOptimizationProfile",),
    "parser": ("OnnxParser",),
    "problem": ("ParserError",),
    "layer": ("ILayer", "IAttentionInputLayer"),  # its class is assigned
    "attention": ("IAttention",),
    "cache": ("ITimingCache",),
    "runtime": ("Runtime",),
    "engine": ("ICudaEngine",),
    "inspector": ("EngineInspector",),
    "refitter": ("Refitter",),
    "prototype": ("Weights",),
    "weights": ("Weights",),
    "context": ("IExecutionContext",),
    "settings": ("IRuntimeConfig",),
    "kernels": ("IRuntimeCache",),
}
PLAIN = frozenset({"trt", "value", "logger", "severity", "dtype"})
"""Names that may be `Any` and need no class: the module, and values that are only compared or handed on."""
RETURNS: Mapping[str, str] = {
    "create_network": "network", "create_builder_config": "config", "create_optimization_profile": "native",
    "get_error": "problem", "get_layer": "layer", "create_timing_cache": "cache", "deserialize_cuda_engine": "engine",
    "create_engine_inspector": "inspector", "get_weights_prototype": "prototype", "Builder": "builder",
    "create_execution_context": "context", "create_runtime_config": "settings", "create_runtime_cache": "kernels",
    "get_runtime_cache": "kernels", "OnnxParser": "parser", "Runtime": "runtime", "Refitter": "refitter", "Weights": "weights",
}  # fmt: skip
"""Function or class -> the name that its result must be assigned to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Touch:
    """One use: any of `names` (dotted) must exist; `guards` are the probes asked in the same function."""

    names: tuple[str, ...]
    guards: frozenset[str]
    line: int


def exists(release: str, dotted: str) -> bool:
    """Whether a release has a class, enum, function, or a member of one."""
    surface = SURFACES[release]
    owner, _, member = dotted.partition(".")
    if not member:
        return owner in surface["classes"] or owner in surface["enums"] or owner in surface["functions"]
    return member in surface["classes"].get(owner, ()) or member in surface["enums"].get(owner, ())


def fake_module(release: str) -> Any:
    """A namespace with the names of a release, for `Library.has`."""
    surface = SURFACES[release]
    owners = {**surface["classes"], **surface["enums"]}
    namespaces = {name: SimpleNamespace(**dict.fromkeys(members)) for name, members in owners.items()}
    return SimpleNamespace(__version__=release.split()[1], **namespaces)


def touches(source: str) -> Iterator[Touch]:
    """Every TensorRT name that a source uses."""
    tree = ast.parse(source)
    scopes = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and (names := _names(node)):
            inner = [scope for scope in scopes if scope.lineno <= node.lineno <= (scope.end_lineno or 0)]
            guards = frozenset(probe for scope in inner for probe in _probes(scope))
            yield Touch(names=names, guards=guards, line=node.lineno)


def problems(source: str) -> list[str]:
    """What in a source some release does not have, without a probe; and values that this check would lose sight of."""
    found = []
    for touch in touches(source):
        lacking = [release for release in SURFACES if not any(exists(release, name) for name in touch.names)]
        probed = any(_answers(probe, name) for probe in touch.guards for name in touch.names)
        if len(lacking) == len(SURFACES):
            found.append(f"line {touch.line}: no release has {' or '.join(touch.names)}")
        elif lacking and not probed:
            found.append(f"line {touch.line}: {touch.names[0]} is not in {', '.join(lacking)}, and no probe is asked")
    return found + list(_lost(ast.parse(source)))


def _answers(probe: str, name: str) -> bool:
    """Whether a probe asks for a name, or for a member of it."""
    return any(listed == name or listed.startswith(f"{name}.") for listed in PROBES[probe])


def _names(node: ast.Attribute) -> tuple[str, ...]:
    if node.attr.startswith("__") or isinstance(node.value, ast.Constant):
        return ()
    owner = _last(node.value)
    if owner == "trt":
        return (node.attr,)
    if isinstance(node.value, ast.Attribute) and _last(node.value.value) == "trt":
        return (f"{owner}.{node.attr}",)
    return tuple(f"{kind}.{node.attr}" for kind in VARIABLES.get(owner, ()))


def _last(node: ast.expr) -> str:
    """`x` and `self.x` -> 'x'."""
    if isinstance(node, ast.Name):
        return node.id
    return node.attr if isinstance(node, ast.Attribute) else ""


def _probes(scope: ast.FunctionDef) -> Iterator[str]:
    for node in ast.walk(scope):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "has":
            (argument,) = node.args
            assert isinstance(argument, ast.Constant), "probes are asked by their literal name"
            yield str(argument.value)


def _lost(tree: ast.Module) -> Iterator[str]:
    """Untyped parameters and results of TensorRT under names that say nothing."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg) and isinstance(node.annotation, ast.Name) and node.annotation.id == "Any":
            if node.arg not in VARIABLES and node.arg not in PLAIN:
                yield f"line {node.lineno}: {node.arg}: Any has no agreed name"
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            expected = RETURNS.get(_last(node.value.func))
            (target,) = node.targets
            if expected is not None and _last(target) != expected:
                yield f"line {node.lineno}: the result of {_last(node.value.func)} must be called {expected}"
