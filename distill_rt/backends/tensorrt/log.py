"""What TensorRT says: kept, and attached to the error that it explains.

Its functions answer None or False; the reason is in the log, which other programs print and lose.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from distill_rt.backends.tensorrt.library import Library
from distill_rt.core.errors import TargetError

MAX_KEPT = 1000
"""Messages kept per build; the last ones explain a failure."""
MAX_IN_DETAILS = 5
AFTERMATH = re.compile(r"cudaError \d+")
"""TensorRT-RTX on a machine without a GPU adds such a line after every error, whatever the error is."""


class Log:
    """A TensorRT logger that keeps warnings and errors. TensorRT calls it from its own threads.

    The logger must outlive everything that was made with it; `logger` is what TensorRT takes.
    """

    def __init__(self, library: Library) -> None:
        self.messages: list[tuple[str, str]] = []
        self._title = library.title
        self.logger = _make_logger(library.trt, self.messages)

    def errors(self) -> list[str]:
        """Errors so far, oldest first, without what only follows from there being no GPU (unless that is all)."""
        errors = [text for severity, text in self.messages if severity in ("ERROR", "INTERNAL_ERROR")]
        return [text for text in errors if not AFTERMATH.search(text)] or errors

    def refuse(
        self, what: str, *, hint: str, code: str = "compiler-refused", reasons: Sequence[str] = ()
    ) -> TargetError:
        """The error to raise when TensorRT answered None or False.

        Args:
            what: what it would not do, such as ``cannot compile network0.onnx``.
            reasons: known already; else the log has them.
        """
        found = list(reasons) or self.errors()
        reason = _short(found[0]) if found else "no reason given"
        return TargetError(
            f"{self._title} {what}: {reason}", code=code, hint=hint, details={"log": found[-MAX_IN_DETAILS:]}
        )


def _make_logger(trt: Any, messages: list[tuple[str, str]]) -> Any:
    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.WARNING, trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                messages.append((severity.name, message))
                del messages[:-MAX_KEPT]

    return Logger()


def _short(text: str) -> str:
    """One line, without the frames of TensorRT's own sources."""
    text = " ".join(text.split())
    text = re.sub(r"^\w+::\w+: Error Code \d+: (API Usage Error \()?", "", text)
    text = re.sub(r"\s*\(?\bIn \S+ at \S+:\d+.*$", "", text)
    return text[:400]
