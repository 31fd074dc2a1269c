"""ONNX Runtime on the processor: float32, runs everywhere, the same bits for an image in every batch.

Compiled form: the graph after every offline optimisation for one static batch, weights in a file beside it, so that
loading only packs weights (about half the time of optimising again). The layout optimisation (NCHWc convolutions)
blocks channels by the vector width of this processor; that ties the files to its instruction sets, which are part of
the fingerprint.

Threads: MLAS splits some operators by the number of threads, which changes the order of sums. The number is pinned in the
engine, and `distill_rt.export.exactness` measures at build which batches give the bits of batch 1.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from distill_rt.backends import processor
from distill_rt.backends.base import Array, CompileOptions, allocate
from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.errors import TargetError
from distill_rt.core.optional import installed, require
from distill_rt.core.spec import TensorSpec

PROVIDERS = ["CPUExecutionProvider"]
LOG_ERRORS_ONLY = 3
UNKNOWN_OPERATOR = re.compile(r"Could not find an implementation for (\w+)\(\d+\)")
"""How it names an operator that it does not have."""
SESSION_ENTRIES: Mapping[str, str] = {
    # Workers spin between the steps of a request instead of sleeping; waking them costs more than a small layer takes.
    "session.intra_op.allow_spinning": "1",
    # Arm only: never trade float32 products for bfloat16 ones behind our back.
    "mlas.enable_gemm_fastmath_arm64_bfloat16": "0",
}


class OnnxRuntime:
    """Target ``onnxruntime:cpu``."""

    name: ClassVar[str] = "onnxruntime"
    device: ClassVar[str] = "cpu"
    extra: ClassVar[str] = "onnxruntime"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32",)
    joins_batches: ClassVar[bool] = False
    typed_graphs: ClassVar[bool] = False
    runs_on: ClassVar[Literal["host", "cuda"]] = "host"
    can_refit: ClassVar[bool] = False
    bit_exact_batches: ClassVar[bool] = True
    rewrites: ClassVar[tuple[str, ...]] = ("decompose-group-norm/1",)

    def unavailable(self) -> str | None:
        return None if installed("onnxruntime") else "package 'onnxruntime' is not installed"

    def cannot_build(self) -> str | None:
        return None

    def cannot_run(self) -> str | None:
        return None

    def machine(self) -> str:
        return processor.name()

    def check(self, options: CompileOptions) -> None:
        if options.precision not in self.precisions:
            raise TargetError(
                f"onnxruntime:cpu computes in fp32 only, not in {options.precision}: ONNX Runtime has no such kernels for "
                "processors",
                code="precision-unsupported",
                hint="leave --precision out, or use --target openvino:cpu",
                details={"precisions": list(self.precisions)},
            )

    def settings(self, options: CompileOptions) -> dict[str, Any]:
        return {
            "precision": options.precision,
            "num_threads": options.num_threads,
            "inter_op_num_threads": 1,
            "execution_mode": "sequential",
            "graph_optimization_level": "all",
            "providers": list(PROVIDERS),
            **SESSION_ENTRIES,
        }

    def fingerprint_parts(self, options: CompileOptions) -> dict[str, Any]:
        ort = require("onnxruntime", extra=self.extra)
        return {
            "compiler": f"onnxruntime {ort.__version__}",
            "processor": processor.identity(),
            "settings": self.settings(options),
        }

    def compile(
        self,
        onnx_path: Path,
        component: Component,
        batches: Sequence[int],
        out_dir: Path,
        stem: str,
        options: CompileOptions,
    ) -> tuple[str, ...]:
        self.check(options)
        (batch,) = batches
        ort = require("onnxruntime", extra=self.extra)
        session_options = _session_options(ort, options)
        session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        session_options.add_free_dimension_override_by_name("B", batch)
        graph, weights = f"{stem}.onnx", f"{stem}.weights"
        session_options.optimized_model_filepath = str(out_dir / graph)
        session_options.add_session_config_entry("session.optimized_model_external_initializers_file_name", weights)
        session_options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", "1024"
        )
        try:
            ort.InferenceSession(str(onnx_path), session_options, providers=PROVIDERS)
        except Exception as error:  # its exceptions share no base class
            # A full disk comes as "Protobuf serialization failed": ask the disk itself.
            if shutil.disk_usage(out_dir).free < onnx_path.stat().st_size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(out_dir)) from error
            raise _refused("cannot compile", onnx_path, error) from error
        # A graph without large weights has no second file.
        return tuple(name for name in (graph, weights) if (out_dir / name).exists())

    def add_kernels(self, directory: Path) -> None:
        pass  # `distill_rt.kernels` has them for every processor

    def load(
        self,
        directory: Path,
        files: Sequence[str],
        inputs: Sequence[TensorSpec],
        outputs: Sequence[TensorSpec],
        batch: int,
        options: CompileOptions,
    ) -> OnnxRuntimeProgram:
        ort = require("onnxruntime", extra=self.extra)
        session_options = _session_options(ort, options)
        # The file is optimised already; doing it again would cost time and change nothing.
        session_options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        path = directory / files[0]
        try:
            session = ort.InferenceSession(str(path), session_options, providers=PROVIDERS)
            return OnnxRuntimeProgram(session, allocate(inputs, batch), allocate(outputs, batch))
        except Exception as error:  # its exceptions share no base class
            raise _refused("cannot load", path, error) from error


class OnnxRuntimeProgram:
    """A session bound to NumPy buffers once; a call is one `run_with_iobinding`."""

    def __init__(self, session: Any, inputs: dict[str, Array], outputs: dict[str, Array]) -> None:
        self.inputs: Mapping[str, Array] = inputs
        self.outputs: Mapping[str, Array] = outputs
        self._session = session
        self._binding = session.io_binding()
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        self._session.run_with_iobinding(self._binding)


def _session_options(ort: Any, options: CompileOptions) -> Any:
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = options.num_threads
    session_options.inter_op_num_threads = 1
    session_options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    session_options.log_severity_level = LOG_ERRORS_ONLY
    for key, value in SESSION_ENTRIES.items():
        session_options.add_session_config_entry(key, value)
    return session_options


def _refused(what: str, path: Path, error: Exception) -> TargetError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    missing = UNKNOWN_OPERATOR.search(reason)
    return TargetError(
        f"ONNX Runtime {what} {path.name}: {reason}",
        code="compiler-refused",
        hint="compile again with --force, or choose another target",
        details={"operators": [missing[1]]} if missing else {},
    )
