"""A Python that is none: called as ``PYTHON -I modelopt_worker.py JOB RESULT``, it plays the worker as `install` was told.

``works`` puts one Q/DQ pair in front of the last convolution with the onnx of this environment. Real enough for TensorRT to
build a plan from, and it needs no modelopt.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

VERSIONS = {"nvidia-modelopt": "0.47.0", "onnx": "1.21.0", "onnxruntime": "1.24.4", "numpy": "2.4.6"}


def install(directory: Path, behaviour: str) -> Path:
    """Write the program; what it was called with is in ``called`` beside it, a pid of its own child in ``child``."""
    python = directory / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" "{directory}" "{behaviour}" "$@"\n')
    python.chmod(0o755)
    return python


def play(directory: Path, behaviour: str, job_path: Path, result_path: Path) -> None:
    job = json.loads(job_path.read_text())
    (directory / "called").write_text(json.dumps(job))
    if behaviour == "works":
        result_path.write_text(json.dumps(_quantise(job)))
    elif behaviour == "crashes":
        print("terminate called after throwing an instance of 'std::bad_alloc'", flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    elif behaviour == "exits":
        sys.exit(3)
    elif behaviour == "says nothing":
        pass
    elif behaviour == "hangs":
        child = subprocess.Popen(["sleep", "60"])
        (directory / "child").write_text(f"{os.getpid()} {child.pid}")
        time.sleep(60)
    else:  # an error of that kind
        kind, _, message = behaviour.partition(":")
        result_path.write_text(json.dumps({"ok": False, "kind": kind, "error": message}) + "\n")


def _quantise(job: dict[str, object]) -> dict[str, object]:
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(job["graph"]))
    graph = model.graph
    index = max(i for i, node in enumerate(graph.node) if node.op_type == "Conv")
    source = graph.node[index].input[0]
    kind = TensorProto.INT8 if job["mode"] == "int8" else TensorProto.FLOAT8E4M3FN
    graph.initializer.append(numpy_helper.from_array(np.array(0.05, np.float32), "q.scale"))
    graph.initializer.append(helper.make_tensor("q.zero", kind, [], b"\0", raw=True))
    pair = [
        helper.make_node("QuantizeLinear", [source, "q.scale", "q.zero"], ["q.8bit"], name="q"),
        helper.make_node("DequantizeLinear", ["q.8bit", "q.scale", "q.zero"], ["q.back"], name="dq"),
    ]
    graph.node[index].input[0] = "q.back"
    for offset, node in enumerate(pair):
        graph.node.insert(index + offset, node)
    onnx.save(model, str(job["output"]))
    with np.load(str(job["calibration"])) as arrays:
        rows = len(arrays[arrays.files[0]])
    return {"ok": True, "quantize": 1, "dequantize": 1, "operators": {"Conv": 1}, "rows": rows, "versions": VERSIONS}


if __name__ == "__main__":
    _, where, what, *_, job_file, result_file = sys.argv
    play(Path(where), what, Path(job_file), Path(result_file))
