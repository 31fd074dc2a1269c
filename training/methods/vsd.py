"""Variational score distillation without images: DMD's loop without pairs.

Wang et al. 2023 (arXiv 2305.16213), section 3; as a one-step generator SwiftBrush (Nguyen & Tran 2024, arXiv 2312.05239) and,
with ``weighting=diff_instruct``, Diff-Instruct (Luo et al. 2023, arXiv 2305.18455).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from distill_rt.training.methods.dmd import DistributionMatching


@dataclass(frozen=True, kw_only=True, slots=True)
class VariationalScore(DistributionMatching):
    """Settings as in `DistributionMatching`. The papers' own weights are ``weighting=vsd`` and ``diff_instruct`` at
    ``level_power=1``; the defaults keep twice as many modes of a grid (docs/methods.md)."""

    name: ClassVar[str] = "vsd"

    weighting: Literal["dmd", "vsd", "diff_instruct"] = "dmd"
    pairs_weight: float = 0.0
    level_power: float = 2.0
    score_steps: int = 4
    iterations: int = 8000
