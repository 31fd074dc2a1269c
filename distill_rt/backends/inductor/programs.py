"""Packages on processors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from distill_rt.backends.base import Array
from distill_rt.backends.inductor.package import Package


class InductorProgram:
    """A package bound to NumPy buffers.

    torch's own kernels (matrix products, convolutions, attention) take the number of threads of the process; a call sets it to
    that of the engine.
    """

    def __init__(self, package: Package, inputs: dict[str, Array], outputs: dict[str, Array], num_threads: int) -> None:
        self.inputs: Mapping[str, Array] = inputs
        self.outputs: Mapping[str, Array] = outputs
        self._package = package
        self._num_threads = num_threads
        self._inputs = [torch.from_numpy(array) for array in inputs.values()]
        self._outputs = [torch.from_numpy(array) for array in outputs.values()]

    def run(self) -> None:
        if torch.get_num_threads() != self._num_threads:
            torch.set_num_threads(self._num_threads)
        for output, result in zip(self._outputs, self._package.run(self._inputs), strict=True):
            output.copy_(result)
