"""Graph passes on `onnx_ir` models: the trajectory compiler and what targets want.

``one-step graphs + step table -> unroll -> share -> fold -> share -> remove dead -> trajectory graph``
"""

from __future__ import annotations

from distill_rt.export.passes.interface import Pass, identities, run_passes
from distill_rt.export.passes.legalise import check_operators, with_node

__all__ = ["Pass", "check_operators", "identities", "run_passes", "with_node"]
