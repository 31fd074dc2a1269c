"""OpenVINO on the processor: the fastest target on x86, float32 or bfloat16.

Compiled form: OpenVINO's own export ("blob") of the graph for one static batch: it holds the transformed graph and the
weights, so that loading only generates code (half the time of compiling the ONNX file, two thirds of OpenVINO's own IR).
The blob belongs to one version and one set of instruction sets; both are part of the fingerprint, which is checked
before OpenVINO sees the file.

Settings: a latency engine is one stream with all threads on one call; precision is a hint that OpenVINO may lower or
ignore, so it is pinned, and read back from the compiled model.

bfloat16 has 8 bits: a time of 999 becomes 1000, and the sine of 999 * frequency becomes noise. So what is computed from
scalars stays in float32 up to the first matrix product (`keep_scalars_exact`).
"""

from __future__ import annotations

import mmap
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from distill_rt.backends import processor
from distill_rt.backends.base import Array, CompileOptions, allocate
from distill_rt.backends.openvino_graph import has_many_small_operations, keep_scalars_exact, store_half
from distill_rt.backends.signal_stack import kept_signal_stack
from distill_rt.core.artifacts import Component, Precision
from distill_rt.core.errors import TargetError
from distill_rt.core.optional import installed, require
from distill_rt.core.spec import TensorSpec

DEVICE = "CPU"
UNKNOWN_OPERATORS = re.compile(r"No conversion rule found for operations: (.+)")
"""How it names operators that it does not have: ``Det-21, MaxUnpool-21``."""
MANY_KERNELS: Mapping[str, str] = {"SNIPPETS_MODE": "DISABLE"}
"""A kernel for each elementwise operation. OpenVINO's generator of fused ones ("snippets") takes a millisecond for each while
an engine loads, as much as everything else in a trajectory, and wins 0 to 4 % of a call where tensors stay in a cache
(docs/log.md). It fuses attention too, which pays where they do not. The blob holds the choice."""
GRAPH_RECIPE = 3
"""Raise it when `OpenVINO.compile` starts to make another graph of the same file."""
BF16_INSTRUCTION_SETS = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


class OpenVINO:
    """Target ``openvino:cpu``."""

    name: ClassVar[str] = "openvino"
    device: ClassVar[str] = "cpu"
    extra: ClassVar[str] = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "bf16", "int8")
    joins_batches: ClassVar[bool] = False
    typed_graphs: ClassVar[bool] = False
    runs_on: ClassVar[Literal["host", "cuda"]] = "host"
    can_refit: ClassVar[bool] = False
    bit_exact_batches: ClassVar[bool] = False
    rewrites: ClassVar[tuple[str, ...]] = (
        "fold-upsampling/1",
        "split-projections/1",
        "merge-projections/1",
        "group-norm-moments/1",  # large images; the small ones are left to the next
        "decompose-group-norm/1",
    )

    def unavailable(self) -> str | None:
        return None if installed("openvino") else "package 'openvino' is not installed"

    def cannot_build(self) -> str | None:
        return None

    def cannot_run(self) -> str | None:
        return None

    def machine(self) -> str:
        return processor.name()

    def check(self, options: CompileOptions) -> None:
        if options.precision not in self.precisions:
            raise TargetError(
                f"openvino:cpu computes in {' or '.join(self.precisions)}, not in {options.precision}",
                code="precision-unsupported",
                hint="choose one of these (command line: --precision)",
                details={"precisions": list(self.precisions)},
            )
        if options.precision == "bf16" and not BF16_INSTRUCTION_SETS & processor.instruction_sets():
            raise TargetError(
                f"this processor ({processor.name()}) has no bfloat16 instructions",
                code="precision-unsupported",
                hint="use --precision fp32",
                details={"precisions": ["fp32"]},
            )

    def settings(self, options: CompileOptions) -> dict[str, Any]:
        return {
            "INFERENCE_PRECISION_HINT": _element_type(options.precision),
            "INFERENCE_NUM_THREADS": options.num_threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_HYPER_THREADING": False,
            # Two engines on one machine would pin their threads to the same cores.
            "ENABLE_CPU_PINNING": False,
            # No int8 activations behind our back for compressed weights.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }

    def fingerprint_parts(self, options: CompileOptions) -> dict[str, Any]:
        ov = import_openvino()
        return {
            "compiler": f"openvino {ov.get_version()}",
            "recipe": GRAPH_RECIPE,
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
        ov = import_openvino()
        core = ov.Core()
        try:
            model = core.read_model(str(onnx_path))
            model.reshape({spec.name: list(spec.concrete(batch)) for spec in component.inputs})
            if _element_type(options.precision) != "f32":
                model = store_half(ov, core, model, out_dir)
                keep_scalars_exact(ov, model, component.inputs)
            settings = self.settings(options)
            if has_many_small_operations(model):
                settings |= dict(MANY_KERNELS)
            with kept_signal_stack():
                compiled = core.compile_model(model, DEVICE, settings)
                blob = compiled.export_model()
        except RuntimeError as error:
            raise _refused("cannot compile", onnx_path, error) from error
        self._check_precision(ov, compiled, options)
        file = f"{stem}.blob"
        (out_dir / file).write_bytes(blob.getbuffer())
        return (file,)

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
    ) -> OpenVINOProgram:
        ov = import_openvino()
        path = directory / files[0]
        try:
            # A tensor, not bytes: OpenVINO then uses the weights where they lie instead of copying them. They lie in the
            # file, mapped privately: writable, as OpenVINO wants it, although nobody writes.
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            blob = np.frombuffer(mapped, np.uint8)
            with kept_signal_stack():
                compiled = ov.Core().import_model(ov.Tensor(blob, shared_memory=True), DEVICE, self.settings(options))
                self._check_precision(ov, compiled, options)
                # The weights are packed by now; the pages that were read for it come back from the file if ever needed.
                if hasattr(mmap, "MADV_DONTNEED"):
                    mapped.madvise(mmap.MADV_DONTNEED)
                return OpenVINOProgram(ov, compiled, allocate(inputs, batch), allocate(outputs, batch), blob)
        except RuntimeError as error:
            raise _refused("cannot load", path, error) from error

    def _check_precision(self, ov: Any, compiled: Any, options: CompileOptions) -> None:
        asked = _element_type(options.precision)
        got = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        if got != asked:
            raise TargetError(
                f"OpenVINO compiled in {got} although {asked} was asked for",
                code="precision-unsupported",
                hint="use --precision fp32",
            )


class OpenVINOProgram:
    """An infer request over NumPy memory; a call is start and wait, without any dictionary on the way."""

    def __init__(
        self, ov: Any, compiled: Any, inputs: dict[str, Array], outputs: dict[str, Array], weights: Array
    ) -> None:
        self.inputs: Mapping[str, Array] = inputs
        self.outputs: Mapping[str, Array] = outputs
        self._weights = weights  # the compiled model reads this memory
        self._request = compiled.create_infer_request()
        for name, array in (inputs | outputs).items():
            self._request.set_tensor(name, ov.Tensor(array, shared_memory=True))

    def run(self) -> None:
        self._request.start_async()
        self._request.wait()


def _element_type(precision: Precision) -> str:
    """What OpenVINO computes in; in int8 graphs, what their quantised products leave over."""
    fast = precision == "bf16" or (precision == "int8" and bool(BF16_INSTRUCTION_SETS & processor.instruction_sets()))
    return "bf16" if fast else "f32"


def import_openvino() -> Any:
    """OpenVINO without its model converter, whose import doubles the time and reports the use of the package.

    `openvino/__init__.py` imports `openvino.tools.ovc` where it can be imported; that starts a process which sends an
    event to a web service, unless the user has opted out. Neither belongs into a runtime. `openvino.convert_model` still
    works for whoever calls it: it is imported then.
    """
    converter = "openvino.tools.ovc"
    if "openvino" in sys.modules:
        return require("openvino", extra=OpenVINO.extra)
    sys.modules[converter] = None  # type: ignore[assignment]  # how Python spells "cannot be imported"
    try:
        ov: Any = require("openvino", extra=OpenVINO.extra)
    finally:
        del sys.modules[converter]
    ov.convert_model = _convert_model
    return ov


def _convert_model(*args: Any, **kwargs: Any) -> Any:
    from openvino.tools.ovc import convert_model

    return convert_model(*args, **kwargs)


def _refused(what: str, path: Path, error: RuntimeError) -> TargetError:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The first lines name OpenVINO's source files; the last one says what is wrong.
    missing = [name for line in lines if (found := UNKNOWN_OPERATORS.search(line)) for name in found[1].split(", ")]
    return TargetError(
        f"OpenVINO {what} {path.name}: {lines[-1] if lines else 'no reason given'}",
        code="compiler-refused",
        hint="compile again with --force, or choose another target",
        details={"operators": [name.rpartition("-")[0] for name in missing]} if missing else {},
    )
