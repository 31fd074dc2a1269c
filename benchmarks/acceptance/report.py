"""What one section writes: figures, bars, and how it ended; saved after every entry, so a killed section loses nothing."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

DONE = ("passed", "failed")
"""Statuses that a resumed run keeps. Skipped, timed-out and crashed sections are tried again."""


class Skip(Exception):
    """A section cannot run here; the message says why."""


class Recorder:
    """Collects and saves one section.

    Args:
        path: JSON file, replaced atomically by every entry.
        dry: no GPU: the section runs tiny sizes on the CPU. Bars of speed are then listed with ``passed: null``.
        seconds: the time box; a section that can shorten itself asks `time_left`.
    """

    def __init__(self, path: Path, *, dry: bool, seconds: float) -> None:
        self.path, self.dry = path, dry
        self._end = time.monotonic() + seconds
        self.content: dict[str, Any] = {"status": "running", "reason": "", "figures": {}, "bars": []}
        self.save()

    def time_left(self) -> float:
        return self._end - time.monotonic()

    def figure(self, name: str, value: Any) -> None:
        self.content["figures"][name] = rounded(value)
        self.save()

    def at_most(self, name: str, value: float, threshold: float, *, speed: bool = False, note: str = "") -> None:
        """A bar that larger values break. NaN breaks it."""
        self._bar(name, value, threshold, "at most", value <= threshold, speed, note)

    def at_least(self, name: str, value: float, threshold: float, *, speed: bool = False, note: str = "") -> None:
        """A bar that smaller values break. NaN breaks it."""
        self._bar(name, value, threshold, "at least", value >= threshold, speed, note)

    def holds(self, name: str, value: bool, *, note: str = "") -> None:
        """A bar that is true or false."""
        self._bar(name, value, True, "is", value is True, False, note)

    def finish(self, status: str | None = None, reason: str = "") -> None:
        """Without a status: failed if a bar is broken, else passed."""
        broken = [bar["name"] for bar in self.content["bars"] if bar["passed"] is False]
        self.content["status"] = status or ("failed" if broken else "passed")
        self.content["reason"] = reason or ("broken: " + ", ".join(broken) if broken else "")
        self.save()

    def save(self) -> None:
        write_json(self.path, self.content)

    def _bar(self, name: str, value: Any, threshold: Any, rule: str, passed: bool, speed: bool, note: str) -> None:
        bar = {"name": name, "value": rounded(value), "rule": rule, "threshold": threshold}
        bar["passed"] = None if speed and self.dry else bool(passed)
        if note:
            bar["note"] = note
        self.content["bars"].append(bar)
        self.save()


def rounded(value: Any) -> Any:
    """JSON without NaN and with five significant digits, which is more than any timing has."""
    if isinstance(value, dict):
        return {str(key): rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    return value


def write_json(path: Path, content: Any) -> None:
    """Replace a file in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
