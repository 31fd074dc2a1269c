"""The networks of a bundle in 8 bits: by modelopt for backends that compute in the types of their graph, by NNCF for OpenVINO.

The text encoder stays in half precision: it runs once per prompt, and its embeddings are remembered. For OpenVINO the decoder
is quantized too, as it is within a trajectory: on a processor a tiny one costs a sixth of a one-step image.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import Any, cast

from distill_rt.core.artifacts import EIGHT_BIT, Precision
from distill_rt.core.errors import TargetError
from distill_rt.core.optional import installed, require
from distill_rt.core.spec import DECODER, TRAJECTORY
from distill_rt.export.bundle import Bundle
from distill_rt.export.progress import Progress
from distill_rt.export.quantize.calibration import Array, calibration_digest, calibration_inputs, trajectory_rows
from distill_rt.export.quantize.modelopt import Mode, quantization_settings, quantize_graph
from distill_rt.export.quantize.nncf_int8 import quantize_for_openvino, usable_weight_bits

REST: Precision = "fp16"
"""What is computed between the quantised products."""


OPENVINO_RECIPE = 2
"""Raise it when `quantize_for_openvino` starts to give another graph."""


class NetworkQuantizer:
    """Quantises one network after the other; the calibration inputs are made once.

    Args:
        precision: ``int8`` or ``fp8``.

    Raises:
        TargetError: the bundle is one graph for all steps. Its rows share weights, and a scale per row is not built yet.
    """

    def __init__(self, bundle: Bundle, precision: Precision, progress: Progress) -> None:
        if not any(name.startswith("network") for name in bundle.body.components):
            raise TargetError(
                f"a bundle of a whole trajectory cannot be compiled in {precision}",
                code="precision-unsupported",
                hint="export it with --mode step, or use --precision fp16",
            )
        self._bundle, self._progress = bundle, progress
        self._mode = cast(Mode, precision)
        self._inputs: dict[str, dict[str, Array]] | None = None
        self.reports: dict[str, Any] = {}
        """By network: what was quantised and what it was calibrated on, JSON values."""

    def settings(self) -> dict[str, Any]:
        """What decides the result beside the bundle, for the fingerprint."""
        return quantization_settings(self._mode) | {"rest": REST}

    def graph(self, name: str, source: Path, destination: Path) -> Path:
        """The graph of a component, with Q/DQ nodes if it is a network; the types of the rest are still float32."""
        if not name.startswith("network"):
            return source
        if self._inputs is None:
            self._inputs = calibration_inputs(self._bundle, self._progress)
        component = self._bundle.body.components[name]
        quantized = quantize_graph(
            source, component, self._mode, self._inputs[name], destination, progress=self._progress
        )
        self.reports[name] = quantized.report
        return quantized.path


class OpenVINOQuantizer:
    """As `NetworkQuantizer`, for OpenVINO; a trajectory gets a scale per step, because every step has nodes of its own."""

    def __init__(self, bundle: Bundle, progress: Progress) -> None:
        self._bundle, self._progress = bundle, progress
        self._rows: dict[str, dict[str, Array]] | None = None
        self.reports: dict[str, Any] = {}

    def settings(self) -> dict[str, Any]:
        """What decides the result beside the bundle, for the fingerprint."""
        if not installed("nncf"):
            require("nncf", extra="int8")  # says what to install
        return {
            "tool": f"nncf {metadata.version('nncf')}",
            "recipe": OPENVINO_RECIPE,
            "weight_bits": usable_weight_bits(),
        }

    def graph(self, name: str, source: Path, destination: Path) -> Path:
        """The graph of a component with int8 convolutions and products, as OpenVINO's own format; or as it was."""
        if not name.startswith("network") and name not in (DECODER, TRAJECTORY):
            return source
        if self._rows is None:
            trajectory = self._bundle.body.steps is not None
            self._rows = (trajectory_rows if trajectory else calibration_inputs)(self._bundle, self._progress)
        component, rows = self._bundle.body.components[name], self._rows[name]
        num_rows = len(next(iter(rows.values())))
        samples = [{key: value[i : i + 1] for key, value in rows.items()} for i in range(num_rows)]
        self._progress("int8 scales")
        self.reports[name] = {"calibration": calibration_digest(rows), "rows": num_rows}
        return quantize_for_openvino(
            source, component.inputs, samples, destination.with_suffix(".xml"), weight_bits=usable_weight_bits()
        )


def make_quantizer(
    bundle: Bundle, precision: Precision, progress: Progress, *, typed_graphs: bool
) -> NetworkQuantizer | OpenVINOQuantizer | None:
    """A quantizer where the precision asks for one, else None."""
    if precision not in EIGHT_BIT:
        return None
    return NetworkQuantizer(bundle, precision, progress) if typed_graphs else OpenVINOQuantizer(bundle, progress)
