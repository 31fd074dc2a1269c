"""One component to one ONNX file: torch's dynamo exporter, a clean-up that keeps every weight by name, and the checks.

The exporter's own optimiser merges equal weights (two zero biases become one) and folds weights into new, nameless ones; both
would make the weight manifest a lie and refitting impossible. So it is off, and constants are folded here except where a
weight is involved; the compilers of the backends fold those themselves.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from distill_rt.core.artifacts import Component
from distill_rt.core.errors import ArtifactError, GateError
from distill_rt.core.optional import require
from distill_rt.core.spec import TensorSpec
from distill_rt.export.model_file import SINGLE_FILE_LIMIT_BYTES, save_model

Array = NDArray[Any]

OPSET = 21
BATCH = "B"
EXAMPLE_BATCH = 3
CHECKED_BATCHES = (1, 3)
EXPORT_BAR = 1e-4
"""Relative L2 distance between ONNX Runtime and torch in float32 above which an export counts as wrong; a right one reaches
1e-6, the order of sums."""
KEPT_METADATA = "pkg.torch.onnx.name_scopes"
"""Which module a node came from, for later graph passes. The rest holds stack traces with the paths of this machine."""


def export_component(
    network: torch.nn.Module,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    directory: Path,
    file: str,
    *,
    single_file_limit_bytes: int = SINGLE_FILE_LIMIT_BYTES,
) -> Component:
    """Export, clean, save and check one component.

    Args:
        network: takes the inputs in order and returns the one output; float32, on the CPU.
        inputs, outputs: its tensors (`StudentSpec.components`).
        directory, file: the graph is `directory / file`.

    Raises:
        ArtifactError: a weight is not finite, or the network cannot be exported, or not with a free batch.
        GateError: ONNX Runtime does not compute what torch does.
    """
    check_finite(network, file)
    model = _capture(network, inputs, outputs)
    weights = [name for name, _ in [*network.named_parameters(), *network.named_buffers()]]
    _clean(model, set(weights))
    _free_batch(model, file)
    path = directory / file
    path.parent.mkdir(exist_ok=True)
    save_model(model, path, single_file_limit_bytes=single_file_limit_bytes)
    component = Component(
        file=file,
        inputs=inputs,
        outputs=outputs,
        opset=OPSET,
        initializers={name: name for name in weights if name in model.graph.initializers},
    )
    _check(path, network, component)
    return component


def check_finite(network: torch.nn.Module, name: str) -> None:
    """Refuse weights with NaN or infinity, naming the first one."""
    for key, value in [*network.named_parameters(), *network.named_buffers()]:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise ArtifactError(
                f"weight {key} of {Path(name).stem} is not finite (NaN or infinity): training diverged",
                code="weights-not-finite",
                hint="train again with a smaller learning rate, or take an earlier checkpoint",
                details={"weight": key},
            )


def evaluate(network: torch.nn.Module, tensors: Sequence[TensorSpec], inputs: Mapping[str, Array]) -> Array:
    """The network on NumPy arrays, in float32 on the CPU.

    Args:
        tensors: the component's inputs; their order is that of the network's arguments.
        inputs: by name.
    """
    arguments = (torch.from_numpy(np.ascontiguousarray(inputs[tensor.name])) for tensor in tensors)
    with torch.inference_mode():
        output: Array = network(*arguments).numpy()
    return output


def _capture(network: torch.nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Any:
    """An onnx_ir model with a symbolic batch."""
    require("onnxscript", extra="export")
    example = tuple(torch.from_numpy(value) for value in example_inputs(inputs, EXAMPLE_BATCH).values())
    # Dim.DYNAMIC instead of a named dimension: diffusers' upsampling asks whether the batch is below 64 (a workaround for
    # channels-last kernels that changes no value), and a named dimension would refuse the question.
    try:
        with _quiet():
            program = torch.onnx.export(
                network,
                example,
                dynamo=True,
                opset_version=OPSET,
                input_names=[tensor.name for tensor in inputs],
                output_names=[tensor.name for tensor in outputs],
                dynamic_shapes=_batch_of_every_argument(network, len(example)),
                optimize=False,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        # Its own message is advice on how to debug the exporter; the cause says what it stumbled over.
        reason = str(error.__cause__ or error).strip().splitlines()[0]
        raise ArtifactError(
            f"this network cannot be exported to ONNX: {reason:.300}",
            code="export-unsupported",
            hint="its forward must be traceable by torch.export",
        ) from error
    assert program is not None
    return program.model


def _batch_of_every_argument(network: torch.nn.Module, num_arguments: int) -> Any:
    """Dynamic shapes in the structure of the signature: torch groups what `*conditions` takes."""
    import inspect

    batch = {0: torch.export.Dim.DYNAMIC}
    shapes: list[Any] = []
    for parameter in inspect.signature(network.forward).parameters.values():
        left = num_arguments - len(shapes)
        if left and parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            shapes.append((batch,) * left)
            break
        if left:
            shapes.append(batch)
    return tuple(shapes)


def example_inputs(tensors: tuple[TensorSpec, ...], batch: int) -> dict[str, Array]:
    """Plausible inputs for tracing and for comparing graphs: small numbers, label 0."""
    rng = np.random.default_rng(0)
    return {
        tensor.name: np.zeros(tensor.concrete(batch), np.int64)
        if tensor.dtype == "int64"
        else rng.standard_normal(tensor.concrete(batch)).astype(np.float32)
        for tensor in tensors
    }


def _clean(model: Any, weights: set[str]) -> None:
    """Fold constants that involve no weight, remove what is unused, drop metadata that names this machine."""
    from onnx_ir.passes import common
    from onnxscript import optimizer

    def should_fold(node: Any) -> bool | None:
        return False if any(value is not None and value.name in weights for value in node.inputs) else None

    common.InlinePass()(model)
    optimizer.fold_constants_ir(model, onnx_shape_inference=True, should_fold=should_fold)
    for step in (
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedFunctionsPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    ):
        step(model)
    for holder in (model, model.graph, *model.graph, *_values(model)):
        kept = {key: value for key, value in holder.metadata_props.items() if key == KEPT_METADATA}
        holder.metadata_props.clear()
        holder.metadata_props.update(kept)
        holder.doc_string = None


def _values(model: Any) -> Iterator[Any]:
    yield from model.graph.inputs
    yield from model.graph.initializers.values()
    for node in model.graph:
        yield from node.outputs


def _free_batch(model: Any, file: str) -> None:
    """Give the exporter's symbol for the batch (such as s53) the name that backends set."""
    import onnx_ir as ir

    batches = {str(value.shape[0]) for value in [*model.graph.inputs, *model.graph.outputs]}
    symbol = str(model.graph.inputs[0].shape[0])
    if batches != {symbol} or symbol.isdecimal():
        raise ArtifactError(
            f"{file} cannot be exported for every batch: the network ties its inputs to {', '.join(sorted(batches))}",
            code="export-batch-fixed",
            hint="its forward must not depend on the size of the batch",
        )
    pattern = re.compile(rf"\b{re.escape(symbol)}\b")
    for value in _values(model):
        if value.shape is not None:
            value.shape = ir.Shape([_renamed(dim, pattern) for dim in value.shape])


def _renamed(dim: Any, pattern: re.Pattern[str]) -> int | str | None:
    """A dimension that nobody inferred stays unknown: a name for it would claim that all such dimensions are equal."""
    if isinstance(dim, int):
        return dim
    return None if dim.value is None else pattern.sub(BATCH, dim.value)


def _check(path: Path, network: torch.nn.Module, component: Component) -> None:
    """The file is valid ONNX with inferable shapes, and ONNX Runtime computes what torch does at two batches."""
    onnx = require("onnx", extra="export")
    ort = require("onnxruntime", extra="export")
    onnx.checker.check_model(str(path), full_check=True)
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3
    session = ort.InferenceSession(str(path), session_options, providers=["CPUExecutionProvider"])
    for batch in CHECKED_BATCHES:
        inputs = example_inputs(component.inputs, batch)
        (got,) = session.run(None, inputs)
        want = evaluate(network, component.inputs, inputs)
        # A network whose last layer is still zero answers zero exactly; then any difference is wrong.
        distance = float(np.linalg.norm(got - want) / (np.linalg.norm(want) or 1.0))
        if not distance <= EXPORT_BAR:  # NaN fails too
            raise GateError(
                f"the exported graph {path.name} is not the student: relative L2 distance {distance:.3g} at batch {batch}, "
                f"at most {EXPORT_BAR:g} is allowed",
                code="export-mismatch",
                hint="this is a fault of the exporter; please report it with the network's configuration",
                details={"relative_l2": distance if np.isfinite(distance) else None, "batch": batch},
            )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its stages and warns about packages that nobody needs here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
