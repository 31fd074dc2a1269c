"""What a run tells of its progress."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, int, int, float | None], None]
"""Called as progress(phase name, steps done, steps in all, running loss). Before training there is no loss (images are encoded,
trajectories computed), and a search whose end is not known has 0 steps in all."""
