"""Strict JSON for dataclasses: what a manifest holds is exactly what its dataclass declares.

Unknown keys, missing keys, wrong types and numbers that are not finite are refused with the path of the value at fault.
Types that know how to write themselves (`StepTable`, noise processes) bring `to_json` and `from_json`.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from typing import Any, Literal, TypeVar, Union

from distill_rt.core.errors import ArtifactError

T = TypeVar("T")


class CodecError(ValueError):
    """A JSON value that does not fit its declared type; the message starts with the value's path."""


def to_json(value: Any) -> Any:
    """Dataclasses, tuples, dicts and JSON scalars to plain JSON values."""
    if hasattr(value, "to_json"):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[T], data: Any, where: str = "") -> T:
    """Build `kind` (a dataclass) from parsed JSON.

    Raises:
        CodecError: unknown or missing keys, or a value of the wrong type or out of range.
    """
    result: T = _decode(kind, data, where or kind.__name__)
    return result


def _decode(kind: Any, data: Any, where: str) -> Any:
    if kind is Any:
        return data
    origin = typing.get_origin(kind)
    if origin is Literal:
        choices = typing.get_args(kind)
        if data not in choices or isinstance(data, bool) != any(isinstance(c, bool) for c in choices):
            raise CodecError(f"{where} must be one of {', '.join(map(str, choices))}, got {data!r:.80}")
        return data
    if origin in (Union, types.UnionType):
        if data is None and type(None) in typing.get_args(kind):
            return None
        (inner,) = (arg for arg in typing.get_args(kind) if arg is not type(None))
        return _decode(inner, data, where)
    if origin is tuple:
        return _decode_tuple(typing.get_args(kind), data, where)
    if origin is dict:
        return _decode_dict(typing.get_args(kind), data, where)
    if hasattr(kind, "from_json"):
        return _decode_by_itself(kind, _expect(dict, data, where), where)
    if dataclasses.is_dataclass(kind):
        return _decode_dataclass(kind, data, where)
    if kind is float:
        return _decode_float(data, where)
    return _expect(kind, data, where)


def _decode_float(data: Any, where: str) -> float:
    if isinstance(data, bool) or not isinstance(data, int | float):
        raise CodecError(f"{where} must be a number, got {data!r:.80}")
    try:
        value = float(data)
    except OverflowError:  # an integer beyond float64
        value = math.inf
    if not math.isfinite(value):
        raise CodecError(f"{where} must be a finite number, got {value}")
    return value


def _decode_by_itself(kind: Any, data: dict[str, Any], where: str) -> Any:
    try:
        return kind.from_json(data)
    except ArtifactError as error:
        raise CodecError(f"{where}: {error.message}") from error
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CodecError(f"{where}: {error}") from error


def _expect(kind: type, data: Any, where: str) -> Any:
    if not isinstance(data, kind) or (isinstance(data, bool) and kind is not bool):
        names = {dict: "an object", list: "a list", str: "a string", int: "an integer", bool: "true or false"}
        raise CodecError(f"{where} must be {names.get(kind, kind.__name__)}, got {data!r:.80}")
    return data


def _decode_tuple(args: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    items = _expect(list, data, where)
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(items))
    if len(items) != len(args):
        raise CodecError(f"{where} must have {len(args)} items, got {len(items)}")
    return tuple(_decode(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, items, strict=True)))


def _decode_dict(args: tuple[Any, ...], data: Any, where: str) -> dict[Any, Any]:
    key_kind, item_kind = args
    result = {}
    for key, item in _expect(dict, data, where).items():
        if key_kind is int and not (key.isdecimal() and len(key) < 20 and str(int(key)) == key):
            raise CodecError(f"{where}: keys must be integers, got {key!r:.80}")
        result[key_kind(key)] = _decode(item_kind, item, f"{where}.{key if key.isprintable() else repr(key)}")
    return result


def _decode_dataclass(kind: Any, data: Any, where: str) -> Any:
    values = _expect(dict, data, where)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(values) - set(fields))
    if unknown:
        raise CodecError(f"{where} has unknown keys: {', '.join(map(repr, unknown))}")
    required = {
        name
        for name, field in fields.items()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    }
    missing = sorted(required - set(values))
    if missing:
        raise CodecError(f"{where} lacks {', '.join(missing)}")
    hints = typing.get_type_hints(kind)
    decoded = {name: _decode(hints[name], item, f"{where}.{name}") for name, item in values.items()}
    try:
        return kind(**decoded)
    except ValueError as error:
        raise CodecError(f"{where}: {error}") from error
