"""A float32 graph with the scales and Q/DQ nodes of TensorRT's explicit quantisation, by nvidia-modelopt in its own process.

The bundle's graph goes to the worker as a copy (modelopt writes into the file that it is given), with the names of nodes that
stay as they are (`distill_rt.export.quantize.placement`) and inputs that the student met itself
(`distill_rt.export.quantize.calibration`). What comes back computes in float32 around Q/DQ pairs, in any runtime, and
`distill_rt.export.precision` types the rest as for every other engine. Weights stay behind a QuantizeLinear, with the names of
the manifest; TensorRT folds them.

Scales are the largest magnitude met ("max"), symmetric, per channel for weights of convolutions. On a trained digits student
"entropy" gives int8 images five times further away: it cuts off what few-step students use.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill_rt.core.artifacts import Component
from distill_rt.core.errors import TargetError
from distill_rt.export.model_file import SINGLE_FILE_LIMIT_BYTES, load_model, save_model
from distill_rt.export.progress import Progress, silent
from distill_rt.export.quantize import calibration
from distill_rt.export.quantize.calibration import calibration_digest
from distill_rt.export.quantize.child import describe_exit, log_tail, run_child
from distill_rt.export.quantize.environment import (
    MODELOPT_VERSION,
    PYTHON_VARIABLE,
    SETUP_COMMAND,
    worker_python,
)
from distill_rt.export.quantize.placement import WEIGHTED, kept_nodes

if TYPE_CHECKING:
    import onnx_ir as ir

Array = NDArray[Any]
Mode = Literal["int8", "fp8"]

WORKER = Path(__file__).with_name("modelopt_worker.py")
METHOD = "max"
RECIPE = 1
"""Raise it when the same bundle starts to get other Q/DQ nodes: a rule of `placement`, an argument of the worker."""
TIME_LIMIT_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizedGraph:
    """A graph with Q/DQ nodes.

    Args:
        path: the file; weights beside it if they are many.
        report: JSON values for the engine's manifest: counts, what was kept and why, digest of the calibration, versions.
    """

    path: Path
    report: dict[str, Any]


def quantization_settings(mode: Mode) -> dict[str, Any]:
    """What decides the Q/DQ nodes beside the bundle, JSON values for the fingerprint; the inputs follow from the bundle."""
    return {
        "modelopt": MODELOPT_VERSION,
        "recipe": RECIPE,
        "mode": mode,
        "method": METHOD,
        "calibration": {"rows": calibration.NUM_ROWS, "first_seed": calibration.FIRST_SEED},
    }


def quantize_graph(
    source: Path,
    component: Component,
    mode: Mode,
    inputs: Mapping[str, Array],
    destination: Path,
    *,
    progress: Progress = silent,
    time_limit_seconds: float = TIME_LIMIT_SECONDS,
    single_file_limit_bytes: int = SINGLE_FILE_LIMIT_BYTES,
) -> QuantizedGraph:
    """Quantise one network.

    Args:
        source: float32 graph with the types of its values; not changed.
        inputs: calibration rows by input name.
        destination: where to write it.

    Raises:
        TargetError: no environment, another version, the worker refused, crashed or took too long; the end of its log is in
            the details.
        ResourceError: the disk is full.
    """
    model = load_model(source)
    _name_nodes(model)
    kept = kept_nodes(model, component)
    if not any(node.op_type in WEIGHTED and node.name not in kept for node in model.graph):
        raise TargetError(
            f"the network has nothing to quantise: {', '.join(f'{name} ({why})' for name, why in list(kept.items())[:3])} "
            f"and all others keep their precision",
            code="quantization-empty",
            hint="use --precision fp16: 8 bits are for networks with more layers",
            details={"kept": kept},
        )
    python = worker_python(progress)
    with tempfile.TemporaryDirectory(prefix=".quantize-", dir=destination.parent) as scratch:
        graph = Path(scratch) / "graph.onnx"
        save_model(model, graph, single_file_limit_bytes=single_file_limit_bytes)
        archive = Path(scratch) / "calibration.npz"
        arrays: dict[str, Any] = dict(inputs)
        np.savez(archive, **arrays)
        job = {
            "graph": str(graph),
            "output": str(destination),
            "mode": mode,
            "method": METHOD,
            "calibration": str(archive),
            "exclude": sorted(kept),
            "modelopt": MODELOPT_VERSION,
        }
        progress(f"quantising to {mode}")
        result = _run_worker(python, job, Path(scratch), time_limit_seconds)
    report = {key: result[key] for key in ("quantize", "dequantize", "operators", "rows", "versions")}
    report |= {"kept": dict(sorted(Counter(kept.values()).items())), "calibration": calibration_digest(inputs)}
    return QuantizedGraph(path=destination, report=report)


def _name_nodes(model: ir.Model) -> None:
    """Exclusions are by name, so every node needs one of its own."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def _run_worker(python: Path, job: Mapping[str, Any], scratch: Path, time_limit_seconds: float) -> dict[str, Any]:
    job_path, result_path, log = scratch / "job.json", scratch / "result.json", scratch / "worker.log"
    job_path.write_text(json.dumps(dict(job)), encoding="utf-8")
    code = run_child(
        [str(python), "-I", str(WORKER), str(job_path), str(result_path)],
        log,
        time_limit_seconds=time_limit_seconds,
        environment={"TMPDIR": str(scratch)},  # what a killed worker leaves goes with ours
    )
    if code is None:
        raise _error("quantization-timeout", f"did not end within {time_limit_seconds:g} s", log)
    if code != 0 or not result_path.is_file():
        raise _error("quantization-failed", f"crashed ({describe_exit(code)})", log)
    result: dict[str, Any] = json.loads(result_path.read_text(encoding="utf-8"))
    if result.get("ok") is True:
        return result
    reason = str(result.get("error"))
    if result.get("kind") == "versions":
        raise _error(
            "modelopt-version",
            f"cannot run in {python}: {reason}",
            log,
            hint=f"unset {PYTHON_VARIABLE} and run {SETUP_COMMAND}, or install nvidia-modelopt {MODELOPT_VERSION} there",
        )
    raise _error("quantization-failed", f"refused the graph: {reason}", log)


def _error(code: str, what: str, log: Path, hint: str = "use --precision fp16") -> TargetError:
    return TargetError(f"nvidia-modelopt {what}", code=code, hint=hint, details={"log": log_tail(log)})
