"""The networks of a bundle in 8 bits, for backends that compute in the types of their graph.

Text encoder and decoder stay in half precision: they run once per image, and what the decoder gets wrong is in the pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from distill_rt.core.artifacts import EIGHT_BIT, Precision
from distill_rt.core.errors import TargetError
from distill_rt.export.bundle import Bundle
from distill_rt.export.progress import Progress
from distill_rt.export.quantize.calibration import Array, calibration_inputs
from distill_rt.export.quantize.modelopt import Mode, quantization_settings, quantize_graph

REST: Precision = "fp16"
"""What is computed between the quantised products."""


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


def make_quantizer(
    bundle: Bundle, precision: Precision, progress: Progress, *, typed_graphs: bool
) -> NetworkQuantizer | None:
    """A quantizer where the precision asks for one and the backend takes its types from the graph, else None."""
    return NetworkQuantizer(bundle, precision, progress) if typed_graphs and precision in EIGHT_BIT else None
