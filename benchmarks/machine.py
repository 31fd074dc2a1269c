"""What a result must say to be read later: machine, versions, date, load."""

from __future__ import annotations

import datetime
import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from distill_rt.backends import processor

PACKAGES = ("distill-rt", "numpy", "torch", "diffusers", "transformers", "onnxruntime", "openvino", "nncf")
FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def describe(num_threads: int) -> dict[str, Any]:
    """JSON values: ``machine``, ``versions``, ``datetime``."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    sets = processor.instruction_sets()
    return {
        "machine": {
            "processor": processor.name(),
            "cores": len(os.sched_getaffinity(0)),
            "threads": num_threads,
            "instruction_sets": [feature for feature in FEATURES if feature in sets],
            "load_average": round(os.getloadavg()[0], 1),
        },
        "versions": found,
        "datetime": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
