"""Progress on a terminal: rich where it is installed, one rewritten line where it is not, silence elsewhere."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import time
from collections.abc import Iterator
from typing import Protocol


class Progress(Protocol):
    """Called as ``progress(stage, done, total, loss)``; a total of 0 means that the end is not known."""

    def __call__(self, stage: str, done: int = 0, total: int = 0, loss: float | None = None, /) -> None: ...


@contextlib.contextmanager
def progress_bar() -> Iterator[Progress]:
    """A `Progress` on stderr if that is a terminal, else one that does nothing."""
    if not sys.stderr.isatty():
        yield _silent
    elif importlib.util.find_spec("rich") is None:
        line = _Line()
        try:
            yield line
        finally:
            line.clear()
    else:
        with _rich() as progress:
            yield progress


def _silent(stage: str, done: int = 0, total: int = 0, loss: float | None = None, /) -> None:
    pass


class _Line:
    """One line of stderr, rewritten at most ten times a second."""

    def __init__(self) -> None:
        self._stage = ""
        self._shown_at = 0.0
        self._began: tuple[float, int] = (0.0, 0)

    def __call__(self, stage: str, done: int = 0, total: int = 0, loss: float | None = None, /) -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._shown_at < 0.1 and done != total:
            return
        if stage != self._stage:
            self._began = (now, done)
        self._stage, self._shown_at = stage, now
        count = f" {done}/{total}" if total else ""
        figure = "" if loss is None else f"  loss {loss:.4g}"
        left = _time_left(now - self._began[0], done - self._began[1], total - done) if total else ""
        print(f"\r\033[K{stage}{count}{left}{figure}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _time_left(elapsed_s: float, done: int, left: int) -> str:
    """'  1:05 left' at the speed so far; nothing where there is none yet."""
    if done < 1 or left < 1:
        return ""
    minutes, seconds = divmod(round(elapsed_s / done * left), 60)
    hours, minutes = divmod(minutes, 60)
    return f"  {hours}:{minutes:02d}:{seconds:02d} left" if hours else f"  {minutes}:{seconds:02d} left"


@contextlib.contextmanager
def _rich() -> Iterator[Progress]:
    from rich import progress as bars
    from rich.console import Console

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeElapsedColumn(),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[loss]}"),
    )
    with bars.Progress(*columns, console=Console(stderr=True)) as display:
        tasks: dict[str, bars.TaskID] = {}

        def end_all() -> None:
            for task in tasks.values():
                total = display.tasks[task].total or 1
                display.update(task, completed=total, total=total)

        def show(stage: str, done: int = 0, total: int = 0, loss: float | None = None, /) -> None:
            if stage not in tasks:
                end_all()  # a new stage begins when the one before has ended
                tasks[stage] = display.add_task(stage, total=total or None, loss="")
            figure = "" if loss is None else f"loss {loss:.4g}"
            display.update(tasks[stage], completed=done, total=total or None, loss=figure)

        yield show
        end_all()
