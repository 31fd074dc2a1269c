"""int8 convolutions and matrix products for OpenVINO, by NNCF's post-training quantization.

NNCF's default for processors quantizes additions, normalisations and attention too, which is slower than bfloat16 and three
times as far from the student (docs/log.md). So the scope is ours: convolutions and products with weights, except the first and
the last layers (images and latents have few channels: nothing to gain, most to lose) and the part that computes on times and
guidance scales alone. Everything else stays in the precision that the backend computes in.

A trajectory graph has every layer once per step, so every step gets scales of its own.
"""

from __future__ import annotations

import contextlib
import io
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends import processor
from distill_rt.backends.openvino import import_openvino
from distill_rt.core.errors import TargetError, UsageError
from distill_rt.core.optional import require
from distill_rt.core.spec import TensorSpec

Array = NDArray[Any]
WeightBits = Literal[7, 8]

FEW_CHANNELS = 16
"""A convolution from or to fewer channels than a register holds gains nothing from int8."""
FLOAT_TYPES = (
    "Add",
    "Concat",
    "Divide",
    "GroupNormalization",
    "Interpolate",
    "MVN",
    "Multiply",
    "ReduceMean",
    "ScaledDotProductAttention",
    "Sigmoid",
    "Softmax",
    "Subtract",
    "Swish",
)
"""Operations that NNCF would quantize and that only lose by it."""
HEAVY = frozenset({"MatMul", "Convolution", "ConvolutionBackpropData", "GroupConvolution"})


def usable_weight_bits() -> WeightBits:
    """How many of the 8 bits of a weight this processor can use: see `processor.adds_products_in_16_bits`."""
    return 7 if processor.adds_products_in_16_bits() else 8


def quantize_for_openvino(
    graph: Path,
    inputs: Sequence[TensorSpec],
    samples: Sequence[Mapping[str, Array]],
    destination: Path,
    *,
    weight_bits: WeightBits,
) -> Path:
    """Quantize one component.

    Args:
        graph: ONNX file, after the backend's rewrites.
        inputs: of the component.
        samples: inputs by name, one row each, as they come while the student generates: recorded calls for a component of
            one step, noise and conditions for a trajectory.
        destination: ``*.xml``; the weights go beside it. `OpenVINO.compile` takes it in place of the ONNX file.
        weight_bits: `usable_weight_bits` of the processor that will run it.

    Returns:
        `destination`.

    Raises:
        UsageError: no samples, or samples that do not fit the inputs or are not finite.
        TargetError: NNCF is missing, or refuses the graph.
    """
    _check_samples(inputs, samples)
    ov, nncf = import_openvino(), _import_nncf()
    model = ov.Core().read_model(str(graph))
    model.reshape({tensor.name: list(tensor.concrete(1)) for tensor in inputs})
    # Activations with a zero point: half the distance (docs/log.md).
    preset = nncf.QuantizationPreset.MIXED
    scope = nncf.IgnoredScope(types=list(FLOAT_TYPES), names=_float_nodes(model, inputs), validate=False)
    try:
        with _quiet():
            quantized = nncf.quantize(
                model,
                nncf.Dataset([dict(sample) for sample in samples]),
                subset_size=len(samples),
                preset=preset,
                model_type=nncf.ModelType.TRANSFORMER,  # turns SmoothQuant on and leaves attention alone
                ignored_scope=scope,
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    # The default, 7 bits for the first weights only, is neither right with VNNI nor enough without it.
                    overflow_fix=nncf.OverflowFix.ENABLE if weight_bits == 7 else nncf.OverflowFix.DISABLE,
                    # It would correct the one bias that all steps share once for every step.
                    disable_bias_correction=True,
                ),
            )
    except (RuntimeError, ValueError) as error:
        raise TargetError(
            f"NNCF cannot quantize {graph.name}: {str(error).strip().splitlines()[0]:.300}",
            code="quantizer-refused",
            hint="compile with --precision bf16 or fp32",
        ) from error
    batch = ov.Dimension(-1)
    quantized.reshape({tensor.name: [batch, *tensor.concrete(1)[1:]] for tensor in inputs})
    ov.save_model(quantized, str(destination), compress_to_fp16=False)
    return destination


def _check_samples(inputs: Sequence[TensorSpec], samples: Sequence[Mapping[str, Array]]) -> None:
    if not samples:
        raise UsageError("no calibration samples were given", code="calibration-missing", hint="give some 8 to 64")
    names = [tensor.name for tensor in inputs]
    for number, sample in enumerate(samples):
        if sorted(sample) != sorted(names):
            raise UsageError(
                f"calibration sample {number} has {', '.join(sorted(sample)) or 'nothing'}, the graph takes {', '.join(names)}",
                code="calibration-inputs",
                hint="give every input by its name",
            )
        for tensor in inputs:
            value, shape = sample[tensor.name], tensor.concrete(1)
            if value.shape != shape or value.dtype != np.dtype(tensor.dtype):
                raise UsageError(
                    f"calibration sample {number}: {tensor.name} is {value.dtype} {list(value.shape)}, "
                    f"the graph takes {tensor.dtype} {list(shape)}",
                    code="calibration-shape",
                    hint="one row per sample, in the type of the contract",
                )
            if not np.isfinite(value).all():
                raise UsageError(
                    f"calibration sample {number}: {tensor.name} is not finite",
                    code="calibration-not-finite",
                    hint="a scale that covers infinity is infinite",
                )


def _float_nodes(model: Any, inputs: Sequence[TensorSpec]) -> list[str]:
    """First and last convolutions, and the products behind scalars before anything of an image joins them."""
    wide = {tensor.name for tensor in inputs if tensor.dtype != "float32" or len(tensor.shape) > 1}
    from_image: set[str] = set()
    names = []
    for node in model.get_ordered_ops():
        sources = [node.input_value(i).get_node() for i in range(node.get_input_size())]
        name = node.get_friendly_name()
        is_image = node.get_type_name() == "Parameter" and bool(wide & node.output(0).get_names())
        if is_image or any(source.get_friendly_name() in from_image for source in sources):
            from_image.add(name)
        if node.get_type_name() not in HEAVY:
            continue
        if name not in from_image or _few_channels(node):
            names.append(name)
    return names


def _few_channels(node: Any) -> bool:
    if "Convolution" not in node.get_type_name():
        return False
    return min(int(dim.get_length()) for dim in list(node.input_value(1).get_partial_shape())[:2]) < FEW_CHANNELS


def _import_nncf() -> Any:
    """NNCF without its reports to a web service, which it sends unless the telemetry package cannot be imported."""
    if "nncf" in sys.modules:
        return require("nncf", extra="int8")
    before = sys.modules.get("openvino_telemetry")
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # how Python spells "cannot be imported"
    try:
        return require("nncf", extra="int8")
    finally:
        del sys.modules["openvino_telemetry"]
        if before is not None:
            sys.modules["openvino_telemetry"] = before


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """NNCF prints progress bars and lists every node that it leaves alone."""
    logger = logging.getLogger("nncf")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(level)
