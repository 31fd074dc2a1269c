"""What decides a run's bits: a resumed run must have the same, and the student carries it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from typing import Any

import torch

from distill_rt.core import codec
from distill_rt.core.spec import StudentSpec
from distill_rt.training.data.source import Source
from distill_rt.training.methods.base import Method
from distill_rt.training.options import RunOptions
from distill_rt.training.sides import Sides


def identity_of(
    method: Method,
    contract: StudentSpec,
    source: Source,
    sides: Sides,
    *,
    teacher_digest: str | None,
    device: torch.device,
    options: RunOptions,
) -> dict[str, Any]:
    """A JSON object. What does not change the bits is not named, so that digests stay."""
    identity: dict[str, Any] = {
        "method": method.name,
        "settings": _settings_of(method),
        "data": sides.identity(source),
        "seed": options.get("seed", 0),
        "teacher": teacher_digest,
        "contract": codec.to_json(contract),
    }
    if source.class_names:
        identity["classes"] = list(source.class_names)
    loop = _loop(device, options)
    return identity | ({"loop": loop} if loop else {})


def _loop(device: torch.device, options: RunOptions) -> dict[str, Any]:
    """How the loop computes, where it is not the usual way."""
    accumulate, precision = options.get("accumulate", 1), options.get("precision", "fp32")
    loop: dict[str, Any] = {}
    if (accumulate, precision) != (1, "fp32"):
        loop |= {"accumulate": accumulate, "precision": precision}
    if options.get("compile", False):
        loop["compile"] = True
    if options.get("ema_power") is not None:
        loop["ema_power"] = options["ema_power"]
    if options.get("parallel") == "fsdp":
        loop["parallel"] = "fsdp"
    if device.type != "cpu":
        loop["device"] = device.type
    return loop


def _settings_of(method: Any) -> dict[str, Any]:
    return dataclasses.asdict(method)


def with_provenance(spec: StudentSpec, identity: Mapping[str, Any], losses: list[tuple[int, float]]) -> StudentSpec:
    """The contract with how it was made; nothing in it depends on when or where, so equal runs give equal digests."""
    versions = {name: importlib.metadata.version(name) for name in ("distill-rt", "torch", "diffusers")}
    made = {key: value for key, value in identity.items() if key != "contract"}
    curve = [[step, float(f"{loss:.6g}")] for step, loss in losses]
    return dataclasses.replace(spec, provenance={**made, "versions": versions, "losses": curve})
