"""How many attentions a plan computes with a fused kernel: the difference between a fast engine and a slow one, worth a line.

TensorRT: from the engine inspector, which needs the engine and so a GPU. TensorRT-RTX: its plans hold the records of
their functions as text, which can be counted anywhere. Neither format is documented, so the count is a diagnosis and nothing
depends on it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from distill_rt.backends.tensorrt.library import Library

RTX_FUSED_ATTENTION = re.compile(rb"function=\{ name=_?gemm_mha")
RTX_FUNCTION = re.compile(rb"function=\{ name=")
FUSED_LAYER_NAMES = re.compile(r"mha|fmha|flash|fused_?attention", re.IGNORECASE)


def count_in_plan(plan: bytes | memoryview, num_profiles: int) -> int | None:
    """Fused attentions per profile in a TensorRT-RTX plan; None if the plan does not show its functions."""
    if not RTX_FUNCTION.search(plan):
        return None
    return len(RTX_FUSED_ATTENTION.findall(plan)) // num_profiles


def count_in_engine(library: Library, engine: Any) -> int | None:
    """Fused attentions in a deserialised TensorRT engine; None if its layers carry no names. Not run on a GPU yet."""
    trt = library.trt
    inspector = engine.create_engine_inspector()
    layers = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON)).get("Layers", [])
    # A plan with LAYER_NAMES_ONLY lists strings, one with DETAILED objects.
    names = [entry if isinstance(entry, str) else str(entry.get("Name", "")) for entry in layers]
    return sum(bool(FUSED_LAYER_NAMES.search(name)) for name in names) if names else None
