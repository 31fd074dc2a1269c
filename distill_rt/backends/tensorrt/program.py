"""A plan at one number of evaluations: an execution context with memory of its own. Not run on a GPU yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill_rt.backends.cuda.arena import Arena
from distill_rt.backends.cuda.driver import Driver
from distill_rt.backends.cuda.programs import DeviceTensor
from distill_rt.backends.tensorrt.jit import jit_config, save_jit_cache
from distill_rt.backends.tensorrt.plan import REBUILD, Plan
from distill_rt.backends.tensorrt.profiles import concrete_shape
from distill_rt.core.errors import TargetError
from distill_rt.core.spec import TensorSpec


class TensorRTProgram:
    """A `DeviceProgram`: fixed shapes, fixed addresses, one context that nobody else uses.

    The plan's weights are shared with every other program of the plan; scratch memory, inputs and outputs are its own.

    Args:
        plan: deserialised on the driver's GPU.
        batch: B.
        jit_cache: file with the kernels that TensorRT-RTX compiled here earlier; None: compile them again.

    Raises:
        TargetError: the plan was not compiled for this batch, or TensorRT refuses; its log is in the details.
        ResourceError: not enough GPU memory.
    """

    def __init__(
        self,
        plan: Plan,
        driver: Driver,
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batch: int,
        jit_cache: Path | None = None,
    ) -> None:
        self._plan = plan
        sizes = {"B": batch}
        profile = plan.profile_index(sizes)
        if profile is None:
            raise TargetError(f"the plan was not compiled for a batch of {batch}", code="batch-missing", hint=REBUILD)
        shapes = {
            tensor.name: (concrete_shape(tensor, sizes), np.dtype(tensor.dtype)) for tensor in (*inputs, *outputs)
        }
        self._tensors = Arena(driver, shapes, "inputs and outputs of a network")
        self._scratch = driver.allocate(plan.device_memory_bytes(profile), "scratch memory of a network")
        self.inputs: Mapping[str, DeviceTensor] = {tensor.name: self._tensors[tensor.name] for tensor in inputs}
        self.outputs: Mapping[str, DeviceTensor] = {tensor.name: self._tensors[tensor.name] for tensor in outputs}
        self._config = jit_config(plan, jit_cache)  # the context refers to it
        stream = driver.create_stream(self)
        self._context = self._make_context(profile, stream)
        # Labels and tokens are indices: whatever lay in this memory before must not be one.
        driver.zero(self._tensors.memory.address, self._tensors.memory.num_bytes, stream)
        # The first call after a change of shapes initialises, and TensorRT-RTX compiles kernels: neither can be captured.
        self.enqueue(stream)
        driver.synchronize(stream)
        self._check_capturable(stream)
        save_jit_cache(plan, self._config, jit_cache)

    def enqueue(self, stream: int) -> None:
        context = self._context
        if not context.execute_async_v3(stream):
            raise self._plan.log.refuse("does not run the plan", hint=REBUILD, code="plan-failed")

    def _make_context(self, profile: int, stream: int) -> Any:
        plan = self._plan
        trt = plan.library.trt
        engine = plan.engine
        strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
        context = engine.create_execution_context(strategy if self._config is None else self._config)
        if context is None:
            raise plan.log.refuse("cannot make an execution context", hint="free GPU memory, then " + REBUILD)
        done = context.set_optimization_profile_async(profile, stream)
        for name, tensor in self.inputs.items():
            done = done and context.set_input_shape(name, tensor.shape)
        if not done or context.infer_shapes():
            raise plan.log.refuse("refuses the shapes that the plan was compiled for", hint=REBUILD)
        context.set_device_memory(self._scratch.address, self._scratch.num_bytes)
        for name, tensor in (*self.inputs.items(), *self.outputs.items()):
            if tuple(context.get_tensor_shape(name)) != tensor.shape:
                shape = tuple(context.get_tensor_shape(name))
                raise plan.log.refuse(
                    "has another plan than the manifest says",
                    hint=REBUILD,
                    reasons=[f"{name} is {shape}, not {tensor.shape}"],
                )
            if not context.set_tensor_address(name, tensor.address):
                raise plan.log.refuse(f"refuses the memory of {name}", hint=REBUILD)
        return context

    def _check_capturable(self, stream: int) -> None:
        context = self._context
        if self._plan.library.has("capturability") and not context.is_stream_capturable(stream):
            raise self._plan.log.refuse(
                "cannot be captured in a CUDA graph on this GPU",
                hint="load it without captured graphs (capture=False, command line: --no-capture)",
                code="capture-failed",
            )
