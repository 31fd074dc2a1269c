"""TensorRT whose plans are ONNX files and whose contexts are ONNX Runtime: for the code around plans, without a GPU.

It knows the rules that we rely on: shapes and addresses are set before the first call, the first call after that may not be
captured, and calls are work on a stream. Names are checked against the real surfaces elsewhere (test_api_contract.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from fake_cuda import FakeCuda, array_at
from onnx import numpy_helper

from distill_rt.backends.tensorrt.builder import BuildOptions, BuiltPlan
from distill_rt.backends.tensorrt.library import Library

DTYPES = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}
SCRATCH_BYTES = 1 << 12


class Logger:
    WARNING, ERROR, INTERNAL_ERROR = (SimpleNamespace(name=name) for name in ("WARNING", "ERROR", "INTERNAL_ERROR"))

    def __init__(self) -> None:
        pass


class Context:
    """IExecutionContext."""

    def __init__(self, session: Any, cuda: FakeCuda, logger: Any) -> None:
        self._session, self._cuda, self._logger = session, cuda, logger
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._profile: int | None = None
        self._memory = 0
        self._ran = False

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile = index
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert self._profile is not None
        self._shapes[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return [tensor.name for tensor in self._session.get_inputs() if tensor.name not in self._shapes]

    def set_device_memory(self, address: int, size: int) -> None:
        assert self._cuda.on_device(address, size)
        assert address % 256 == 0
        self._memory = size

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        batch = next(iter(self._shapes.values()))[0]
        (shape,) = (t.shape for t in (*self._session.get_inputs(), *self._session.get_outputs()) if t.name == name)
        return tuple(batch if isinstance(dim, str) else dim for dim in shape)

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return address % 256 == 0

    def execute_async_v3(self, stream: int) -> bool:
        ready = self._memory >= SCRATCH_BYTES and len(self._addresses) == len(self._tensors())
        if not ready or (self._cuda.captures[stream] is not None and not self._ran):
            self._logger.log(self._logger.ERROR, "[fake.cpp::enqueueV3::1] Error Code 3: not ready to run")
            return False
        self._ran = True
        self._cuda.put(stream, self._run)
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return True

    def _tensors(self) -> list[Any]:
        return [*self._session.get_inputs(), *self._session.get_outputs()]

    def _array(self, tensor: Any) -> np.ndarray:
        return array_at(self._addresses[tensor.name], self.get_tensor_shape(tensor.name), DTYPES[tensor.type])

    def _run(self) -> None:
        results = self._session.run(None, {tensor.name: self._array(tensor) for tensor in self._session.get_inputs()})
        for tensor, result in zip(self._session.get_outputs(), results, strict=True):
            self._array(tensor)[:] = result


class Engine:
    """ICudaEngine."""

    def __init__(self, plan: bytes, cuda: FakeCuda, logger: Any, num_profiles: int) -> None:
        self._cuda, self._logger = cuda, logger
        self.num_optimization_profiles = num_profiles
        self.load(plan)

    def load(self, plan: bytes) -> None:
        self.plan = plan
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(plan, options, providers=["CPUExecutionProvider"])

    def serialize(self) -> bytes:
        return self.plan

    @property
    def num_io_tensors(self) -> int:
        return len(self._names())

    def _names(self) -> list[str]:
        return [tensor.name for tensor in (*self._session.get_inputs(), *self._session.get_outputs())]

    def get_tensor_name(self, index: int) -> str:
        return self._names()[index]

    def get_device_memory_size_for_profile_v2(self, profile: int) -> int:
        return SCRATCH_BYTES

    def create_execution_context(self, strategy: Any) -> Context:
        return Context(self._session, self._cuda, self._logger)


class Refitter:
    """Refitter: keeps pointers until `refit_cuda_engine`, as the real one does."""

    def __init__(self, engine: Engine, logger: Any) -> None:
        self._engine = engine
        self._model = onnx.load_from_string(engine.plan)
        self._initializers = {item.name: item for item in self._model.graph.initializer}
        self._given: dict[str, tuple[int, int]] = {}

    def get_weights_prototype(self, name: str) -> Any:
        size = int(np.prod(self._initializers[name].dims))
        return SimpleNamespace(dtype="FLOAT", size=size)

    def set_named_weights(self, name: str, weights: tuple[str, int, int]) -> bool:
        _, address, size = weights
        self._given[name] = (address, size)
        return True

    def get_missing_weights(self) -> list[str]:
        return []

    def refit_cuda_engine(self) -> bool:
        for name, (address, size) in self._given.items():
            item = self._initializers[name]
            values = array_at(address, (size,), np.float32).reshape(tuple(item.dims))
            item.CopyFrom(numpy_helper.from_array(values.copy(), name))
        self._engine.load(self._model.SerializeToString())
        return True


def make_library(cuda: FakeCuda, version: str = "11.4.0.106") -> tuple[Library, Callable[..., BuiltPlan]]:
    """A TensorRT on a driver, and a `build_plan` for it."""
    num_profiles = {}

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._logger = logger

        def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
            if plan not in num_profiles:
                self._logger.log(self._logger.ERROR, "Serialization assertion plan_size == header.size failed.")
                return None
            return FileEngine(plan, cuda, self._logger, num_profiles[plan])

    class FileEngine(Engine):
        def serialize(self) -> bytes:
            num_profiles[self.plan] = self.num_optimization_profiles
            return self.plan

    trt = SimpleNamespace(
        Refitter=Refitter,
        DataType=SimpleNamespace(HALF="HALF", BF16="BF16", FLOAT="FLOAT"),
        Weights=lambda dtype, address, size: (dtype, address, size),
        __version__=version,
        ILogger=Logger,
        Runtime=Runtime,
        ExecutionContextAllocationStrategy=SimpleNamespace(USER_MANAGED=2),
    )

    def build_plan(library: Library, onnx_path: Path, inputs: Any, profiles: Any, options: BuildOptions) -> BuiltPlan:
        plan = onnx_path.read_bytes()
        num_profiles[plan] = len(profiles)
        return BuiltPlan(plan=plan, num_attentions=0, num_fused_attentions=0)

    return Library(trt=trt, flavour="tensorrt"), build_plan
