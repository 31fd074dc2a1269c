"""What a search for lossy passes found: part of the manifest of a bundle that `tune` wrote, and of its engines."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One variant of a trajectory, measured.

    Args:
        kind: of the pass (``reuse``, ``todo``, ``ptqd``, ``t-stitch``); empty for plans of the student itself.
        passes: identities of its lossy passes.
        time_ratio, time_interval: of its time to that of the full plan: median of rounds, 95 % interval.
        distance: mean relative L2 of its images to the full plan's in float32.
        alternative: distance that the student's own plans offer in its time; None for the plans.
        accepted: whether it beats them; None for the plans.
    """

    name: str
    kind: str = ""
    passes: tuple[str, ...] = ()
    time_ratio: float
    time_interval: tuple[float, float]
    milliseconds: float
    distance: float
    alternative: float | None = None
    accepted: bool | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossyReport:
    """The whole search.

    Args:
        target, precision, batch, num_threads, device: what was measured on.
        num_images: images of the comparison.
        plans: the full plan first, then those with fewer steps.
        trials: of the passes.
        skipped: kind -> why nothing of it could be tried.
        chosen: name of the trial that entered; empty if none did.
        confirmed: the chosen one measured again, with images and times that did not choose it.
    """

    target: str
    precision: str
    batch: int
    num_threads: int
    device: str
    num_images: int
    plans: tuple[Trial, ...]
    trials: tuple[Trial, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    chosen: str = ""
    confirmed: Trial | None = None
