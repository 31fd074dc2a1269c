"""Run by another Python than ours: a graph and calibration inputs in, the same graph with QuantizeLinear/DequantizeLinear out.

    python modelopt_worker.py JOB.json RESULT.json

nvidia-modelopt pins an older onnx and onnxruntime than this project uses, so it has an environment of its own and this file is
a program, not a module of ours: it imports nothing of distill_rt. RESULT.json appears whole or not at all, one line:
``{"ok": true, ...}`` (`_quantize`) or ``{"ok": false, "kind": ..., "error": one line}``; the exit code is 0 for both. Whatever
modelopt logs goes to the standard streams.

JOB.json: ``graph``, ``output`` (paths), ``mode`` (``int8`` or ``fp8``), ``method`` (``max`` or ``entropy``), ``calibration``
(.npz, one array per input, M rows each), ``exclude`` (names of nodes that stay as they are), ``modelopt`` (the version that the
caller was written for, ``0.47``).
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

FIELDS = {
    "graph": str,
    "output": str,
    "mode": str,
    "method": str,
    "calibration": str,
    "exclude": list,
    "modelopt": str,
}
MODES = ("int8", "fp8")
METHODS = ("max", "entropy")
OPERATORS = ("Conv", "Gemm", "MatMul")
"""What is quantised. modelopt's own choice for int8 adds residual sums, products and the inputs of norms."""
MAX_MESSAGE = 400


class JobError(Exception):
    """The job cannot be done; `kind` tells the caller whose fault it is: job, versions, calibration, modelopt."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


def read_job(path: Path) -> dict[str, Any]:
    """The job, checked.

    Raises:
        JobError: kind ``job``.
    """
    try:
        job = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise JobError("job", f"{path} is not a job: {error}") from error
    if not isinstance(job, dict) or set(job) != set(FIELDS):
        raise JobError("job", f"a job has the fields {', '.join(FIELDS)}")
    for name, kind in FIELDS.items():
        if not isinstance(job[name], kind):
            raise JobError("job", f"{name} must be of type {kind.__name__}, got {job[name]!r}")
    for name, allowed in (("mode", MODES), ("method", METHODS)):
        if job[name] not in allowed:
            raise JobError("job", f"{name} must be one of {', '.join(allowed)}, got {job[name]!r}")
    return job


def check_version(found: str, wanted: str) -> None:
    """`found` must be a release of the series `wanted` (``0.47``).

    Raises:
        JobError: kind ``versions``.
    """
    if found.split(".")[:2] != wanted.split(".")[:2]:
        raise JobError("versions", f"nvidia-modelopt {wanted} is needed, this environment has {found}")


def check_calibration(arrays: dict[str, Any], inputs: dict[str, tuple[int | None, ...]]) -> int:
    """Every input of the graph has an array of its shape, with the same number of rows.

    Args:
        inputs: shape by name; None where the graph leaves a size free.

    Returns:
        Number of rows.

    Raises:
        JobError: kind ``calibration``.
    """
    if set(arrays) != set(inputs):
        raise JobError("calibration", f"the graph takes {', '.join(inputs)}; the data has {', '.join(arrays)}")
    for name, shape in inputs.items():
        got = tuple(arrays[name].shape)
        fits = len(got) == len(shape) and all(want in (None, have) for want, have in zip(shape, got, strict=True))
        if not fits:
            wanted = " x ".join("any" if size is None else str(size) for size in shape)
            raise JobError("calibration", f"input {name} is {wanted}; the data is {' x '.join(map(str, got))}")
    rows = {len(array) for array in arrays.values()}
    if len(rows) != 1 or not min(rows):
        raise JobError("calibration", f"every input needs the same number of rows, at least 1; got {sorted(rows)}")
    return rows.pop()


def quantized_operators(nodes: list[Any]) -> dict[str, int]:
    """How many products and convolutions of each kind get both factors from a DequantizeLinear.

    Raises:
        JobError: kind ``modelopt``; one gets one of them only: modelopt leaves activations out, without an error, whose type it
            cannot infer, and such an operator computes in float with worse weights.
    """
    dequantised = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    counts: Counter[str] = Counter()
    for node in nodes:
        if node.op_type not in OPERATORS:
            continue
        found = len(dequantised.intersection(node.input[:2]))
        if found == 1:
            raise JobError("modelopt", f"modelopt quantised only one factor of {node.op_type} {node.name}")
        counts[node.op_type] += found == 2
    return {kind: number for kind, number in sorted(counts.items()) if number}


def input_shapes(graph: Any) -> dict[str, tuple[int | None, ...]]:
    """Shape of every input that is not an initializer; None where it is free."""
    weights = {item.name for item in graph.initializer}
    return {
        value.name: tuple(
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        )
        for value in graph.input
        if value.name not in weights
    }


def _quantize(job: dict[str, Any]) -> dict[str, Any]:
    """Do the job; returns counts of Q and DQ nodes, the operators behind them, rows, and versions."""
    import modelopt

    check_version(modelopt.__version__, job["modelopt"])
    import numpy as np
    import onnx
    import onnxruntime
    from modelopt.onnx.quantization import quantize

    # The caller's value_info is whole and true. modelopt drops it to infer it again, which ends at the first
    # GroupNormalization: ONNX infers no type behind it, and what has no type is silently not quantised.
    sys.modules["modelopt.onnx.quantization.quantize"].clear_stale_value_info = lambda model: 0  # type: ignore[attr-defined]
    output = Path(job["output"])
    bare = onnx.load(job["graph"], load_external_data=False)
    external = any(item.external_data for item in bare.graph.initializer)
    with np.load(job["calibration"], allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    num_rows = check_calibration(arrays, input_shapes(bare.graph))
    quantize(
        job["graph"],
        quantize_mode=job["mode"],
        calibration_data=arrays,
        calibration_method=job["method"],
        calibration_eps=["cpu"],
        nodes_to_exclude=[f"^{re.escape(name)}$" for name in job["exclude"]],
        op_types_to_quantize=list(OPERATORS),
        high_precision_dtype="fp32",  # the caller types the rest
        disable_mha_qdq=True,
        passes=[],  # concat_elimination: KeyError on a skip connection whose concatenation nobody quantises
        use_external_data_format=external,
        output_path=str(output),
        log_level="WARNING",
    )
    if not output.is_file():
        raise JobError("modelopt", "modelopt ended without an error and without a graph")
    model = onnx.load(str(output))
    del model.graph.value_info[:]  # stale: it holds types and shapes of before
    kinds = Counter(node.op_type for node in model.graph.node)
    if not kinds["QuantizeLinear"]:
        raise JobError("modelopt", "modelopt found nothing to quantise in this graph")
    if external:
        (output.parent / f"{output.name}_data").unlink(missing_ok=True)
    onnx.save(model, str(output), save_as_external_data=external, location=f"{output.name}.data")
    return {
        "ok": True,
        "quantize": kinds["QuantizeLinear"],
        "dequantize": kinds["DequantizeLinear"],
        "operators": quantized_operators(list(model.graph.node)),
        "rows": num_rows,
        "versions": {
            "nvidia-modelopt": modelopt.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "numpy": np.__version__,
        },
    }


def one_line(error: BaseException) -> str:
    """An exception in one line of bounded length."""
    text = " ".join(str(error).split())
    if not isinstance(error, JobError):
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]}..."


def main(arguments: list[str]) -> int:
    """Run one job."""
    if len(arguments) != 2:
        print("usage: modelopt_worker.py JOB.json RESULT.json", file=sys.stderr)
        return 2
    job_path, result_path = map(Path, arguments)
    try:
        result = _quantize(read_job(job_path))
    except JobError as error:
        result = {"ok": False, "kind": error.kind, "error": one_line(error)}
    except ImportError as error:
        result = {"ok": False, "kind": "versions", "error": one_line(error)}
    except Exception as error:  # whatever modelopt raises becomes one line for the caller; the trace goes to the log
        import traceback

        traceback.print_exc()
        result = {"ok": False, "kind": "modelopt", "error": one_line(error)}
    partial = result_path.with_name(f".{result_path.name}.partial")
    partial.write_text(json.dumps(result) + "\n", encoding="utf-8")
    os.replace(partial, result_path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
