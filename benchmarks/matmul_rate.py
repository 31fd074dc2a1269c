"""What the machine can do: the rate of large matrix products in every precision, in OpenVINO.

It is the yardstick for "share of the rate that the engine reaches". Processor time over threads, so that other work on the
machine does not count.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

SIZES = (512, 1024, 2048)
FEATURES = 2048
SECONDS = 1.0


def matmul_rates(num_threads: int) -> dict[str, float]:
    """Precision -> GFLOP/s (GOP/s for int8) of the fastest of three sizes."""
    return {name: round(max(_rate(name, rows, num_threads) for rows in SIZES), 0) for name in ("fp32", "bf16", "int8")}


def _rate(precision: str, rows: int, num_threads: int) -> float:
    import openvino as ov
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    weight: Any = ops.constant(rng.uniform(-1, 1, (FEATURES, FEATURES)).astype(np.float32))
    x: Any = ops.parameter([rows, FEATURES], np.float32)
    left = x
    if precision == "int8":
        one = np.float32(1)
        left = ops.fake_quantize(left, -one, one, -one, one, 256)
        weight = ops.fake_quantize(weight, -one, one, -one, one, 255)
    model = ov.Model([ops.matmul(left, weight, False, False)], [x])
    hint = "f32" if precision == "fp32" else "bf16"
    compiled = ov.Core().compile_model(
        model, "CPU", {"INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": num_threads, "NUM_STREAMS": 1}
    )
    request = compiled.create_infer_request()
    request.set_input_tensor(ov.Tensor(rng.uniform(-1, 1, (rows, FEATURES)).astype(np.float32)))
    best, end = np.inf, time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        start = time.process_time()
        request.infer()
        best = min(best, (time.process_time() - start) / num_threads)
    return 2 * rows * FEATURES**2 / float(best) / 1e9


if __name__ == "__main__":
    import os

    print(matmul_rates(len(os.sched_getaffinity(0))))
