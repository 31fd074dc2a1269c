"""Does an image get the same bits in every batch? Measured, not assumed.

A library may split a sum differently for another batch or number of threads. Whether it does depends on the graph, the
processor and the version, so no rule on paper holds; but it does not depend on the values, so one comparison on real inputs
settles it for an engine, whose fingerprint pins all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from distill_rt.backends.base import Program

Array = NDArray[Any]


def same_bits(reference: Program, program: Program, inputs: Mapping[str, Array]) -> bool:
    """Whether `program` (B images) gives every image, at each of its positions, the bits that `reference` (1 image) gives.

    Args:
        reference: the component compiled for one image; its E rows are the evaluations of that image (2 under cfg).
        program: the component compiled for B images; row e*B + k is evaluation e of image k.
        inputs: golden inputs, any number of rows; they are repeated to fill the batch.
    """
    (output,), (reference_output,) = program.outputs.values(), reference.outputs.values()
    num_evaluations = len(reference_output)
    num_images = len(output) // num_evaluations
    num_rows = len(next(iter(inputs.values())))
    rows = np.arange(len(output)) % num_rows
    for name, buffer in program.inputs.items():
        buffer[:] = inputs[name][rows]
    program.run()
    for k in range(num_images):
        of_image = np.arange(num_evaluations) * num_images + k
        for name, buffer in reference.inputs.items():
            buffer[:] = inputs[name][rows[of_image]]
        reference.run()
        if output[of_image].tobytes() != reference_output.tobytes():
            return False
    return True
