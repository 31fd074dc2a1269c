"""``--set name=value``: text to the typed fields of a frozen dataclass, unknown names refused."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from distill_rt.core.errors import UsageError

T = TypeVar("T")


def apply_settings(config: T, settings: Mapping[str, str]) -> T:
    """`config` with the named fields replaced.

    Raises:
        UsageError: a name that `config` does not have, or text that is not of the field's type.
    """
    assert dataclasses.is_dataclass(config)
    assert not isinstance(config, type)
    hints = typing.get_type_hints(type(config))
    names = [field.name for field in dataclasses.fields(config)]
    values = {}
    for name, text in settings.items():
        if name not in names:
            raise UsageError(
                f"there is no setting {name!r}", code="setting-unknown", hint=f"settings: {', '.join(names)}"
            )
        values[name] = _parse(name, hints[name], text)
    try:
        return dataclasses.replace(config, **values)
    except ValueError as error:
        raise UsageError(str(error), code="setting-invalid") from error


def _parse(name: str, kind: Any, text: str) -> Any:
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        if text not in choices:
            raise UsageError(
                f"setting {name} must be one of {', '.join(choices)}, got {text!r:.80}", code="setting-invalid"
            )
        return text
    if kind is bool:
        if text not in ("true", "false"):
            raise UsageError(f"setting {name} must be true or false, got {text!r:.80}", code="setting-invalid")
        return text == "true"
    try:
        value = kind(text)
        if kind is float and not math.isfinite(value):
            raise ValueError
    except (TypeError, ValueError) as error:
        what = {int: "an integer", float: "a finite number"}.get(kind, kind.__name__)
        raise UsageError(f"setting {name} must be {what}, got {text!r:.80}", code="setting-invalid") from error
    return value
