"""Run another program to its end, and leave nothing of it behind: not after a time limit, an interrupt, or an error of ours."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

MAX_TAIL = 2000


def run_child(
    command: Sequence[str], log: Path, *, time_limit_seconds: float, environment: Mapping[str, str] | None = None
) -> int | None:
    """Run a program in a process group of its own, which is killed when this function is left in any way.

    Args:
        command: program and arguments.
        log: gets both standard streams.
        environment: added to that of this process.

    Returns:
        Exit code (negative: the signal that ended it), or None if it was killed at the time limit.
    """
    with log.open("ab") as stream:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
        try:
            return child.wait(time_limit_seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            # Its own children may outlive it: the group goes in any case.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def log_tail(log: Path) -> str:
    """The end of what a program said."""
    with contextlib.suppress(OSError):
        return log.read_bytes()[-MAX_TAIL:].decode("utf-8", "replace")
    return ""


def describe_exit(code: int) -> str:
    """``exit code 3`` or ``signal SIGSEGV``."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
