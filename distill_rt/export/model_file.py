"""ONNX files as `onnx_ir` models: weights beside the graph stay on disk, memory-mapped, until somebody reads them.

Nothing here serialises a whole model to learn its size: protobuf ends at 2 GiB.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from distill_rt.core.optional import require

if TYPE_CHECKING:
    import onnx_ir as ir

SINGLE_FILE_LIMIT_BYTES = 1 << 30
"""Weights above this go to a file beside the graph."""


def load_model(path: Path) -> ir.Model:
    """Read a graph; external data is mapped, not read."""
    model: ir.Model = require("onnx_ir", extra="cpu").load(path)
    return model


def save_model(model: ir.Model, path: Path, *, single_file_limit_bytes: int = SINGLE_FILE_LIMIT_BYTES) -> None:
    """Write a graph, its weights in the same file or, if they are many, in ``<name>.data`` beside it."""
    external = f"{path.name}.data" if num_weight_bytes(model) > single_file_limit_bytes else None
    if external is None:
        model = model.clone()
        require("onnx_ir", extra="cpu").external_data.load_to_model(model)
    require("onnx_ir", extra="cpu").save(model, path, external_data=external)


def num_weight_bytes(model: ir.Model) -> int:
    """Bytes of all initializers; a shared one counts once."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value is not None)
