"""Fast whole-buffer operations of the hot path on the CPU; installs as `distill_rt.kernels`.

Noise, one row of a step table, guidance, pixels: native (C++) where built, NumPy otherwise, the same bits either way.
`reference.py` is the readable specification, `native/` the C++, `dispatch.py` chooses and checks. Needs numpy alone.
"""

# The folder is `kernels/` in the source tree. Imported under that name it would be a second copy of every class.
if __name__ != "distill_rt.kernels":
    raise ImportError("import this package as distill_rt.kernels (pip install . first), not from the source tree")

from distill_rt.kernels.dispatch import (
    Implementation,
    apply_row,
    available_implementations,
    combine_guidance,
    to_uint8,
    unit_noise,
)

__all__ = ["Implementation", "apply_row", "available_implementations", "combine_guidance", "to_uint8", "unit_noise"]
