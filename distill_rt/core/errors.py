"""Errors that a user can act on: one line that says what was expected, what came, and what to do.

Every failure a user can cause is a `DistillError` of one of five families. The family fixes the exit code of the command
line (design section 7); `code` is a stable word for programs, `hint` is the way out. A Python traceback reaching a
user is a bug of ours.
"""

from __future__ import annotations

from typing import Any, ClassVar


class DistillError(Exception):
    """Base of every error that distill-rt raises on purpose.

    Args:
        message: what was expected and what came, one line.
        code: stable kebab-case identifier, for example ``"steps-not-in-contract"``.
        hint: what to do about it, one line; may be empty.
        details: values for programs (JSON types only), for example ``{"allowed": [1, 2, 4]}``.
    """

    exit_code: ClassVar[int] = 1
    family: ClassVar[str] = "error"

    def __init__(self, message: str, *, code: str, hint: str = "", details: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.hint = hint
        self.details = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def __reduce__(self) -> tuple[Any, ...]:
        """Errors cross processes (worker pools); the default would build them from their message alone."""
        return _rebuilt, (type(self), self.message, self.code, self.hint, self.details)

    def to_json(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        return {
            "error": {
                "family": self.family,
                "code": self.code,
                "message": self.message,
                "hint": self.hint,
                "details": self.details,
            },
            "exit_code": self.exit_code,
        }


def _rebuilt(kind: type[DistillError], message: str, code: str, hint: str, details: dict[str, Any]) -> DistillError:
    return kind(message, code=code, hint=hint, details=details)


class UsageError(DistillError):
    """The request is wrong: an argument, or a request outside the student's contract."""

    exit_code = 2
    family = "usage"


class ArtifactError(DistillError):
    """A student, bundle, engine or checkpoint directory is missing, damaged, foreign or from another version."""

    exit_code = 3
    family = "artifact"


class TargetError(DistillError):
    """This machine cannot build for, or run on, that target: package missing, stale engine, wrong processor."""

    exit_code = 4
    family = "target"


class ResourceError(DistillError):
    """Disk, memory, permissions or a lock stood in the way."""

    exit_code = 5
    family = "resources"


class GateError(DistillError):
    """The compiled engine is not close enough to the student, or nobody has compared them; nothing was published or run."""

    exit_code = 6
    family = "gate"
