"""How TensorRT-RTX compiles kernels when a context is made: all of them then, none later, and none twice on one machine.

Its default compiles specialised kernels in the background while slower ones run. A captured graph would keep the slower
ones for ever, so they are compiled before (strategy EAGER), and kept in a file for the next process. TensorRT has nothing of
this: its plans hold machine code. Not run on a GPU yet.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from distill_rt.backends.tensorrt.plan import Plan


def jit_config(plan: Plan, cache_file: Path | None) -> Any:
    """An IRuntimeConfig for a context in user-managed memory; None where there is nothing to configure.

    A cache file of another GPU, driver or version is ignored by TensorRT-RTX itself, and then written anew.
    """
    library, engine = plan.library, plan.engine
    if not (library.has("runtime-config") and library.has("jit")):
        return None
    trt = library.trt
    settings = engine.create_runtime_config()
    settings.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
    settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    settings.cuda_graph_strategy = trt.CudaGraphStrategy.DISABLED  # we capture the whole request ourselves
    kernels = settings.create_runtime_cache()
    if cache_file is not None and cache_file.is_file():
        kernels.deserialize(cache_file.read_bytes())
    settings.set_runtime_cache(kernels)
    return settings


def save_jit_cache(plan: Plan, settings: Any, cache_file: Path | None) -> None:
    """Keep the kernels that were compiled; whole or not at all, because several processes may do so at once."""
    if settings is None or cache_file is None or not plan.library.has("jit"):
        return
    kernels = settings.get_runtime_cache()
    data = bytes(kernels.serialize())
    if cache_file.is_file() and cache_file.stat().st_size == len(data):
        return
    cache_file.parent.mkdir(parents=True, exist_ok=True)
    partial = cache_file.with_name(f"{cache_file.name}.{os.getpid()}")
    partial.write_bytes(data)
    os.replace(partial, cache_file)
