"""Records from JSON that nobody vouches for: every field is of the type that it declares.

What a type asks for: `int` a whole number within 64 bits, `float` a finite one, `tuple[X, ...]` and
`list[X]` a list, `Mapping[str, X]` an object, a dataclass an object with its fields, of which those
with a default may be left out. `X | Y`, `str`, `bool`, `None` and `Any` are what they say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from math import isfinite
from types import UnionType
from typing import Any, NoReturn, get_args, get_origin, get_type_hints

_SHOWN = 40


def parsed(text: str | bytes) -> Any:
    """Read JSON. Raises `ValueError`, also for NaN and infinities and for what nests too deep."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it nests too deep") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def read(kind: Any, data: Any, where: str = "") -> Any:
    """Return what JSON has, as a `kind`. Raises `ValueError` that tells where it is something else.

    `kind` is a type as a dataclass declares it; `where` the way to `data`, such as `.peak`.
    """
    origin, args = get_origin(kind), get_args(kind)
    if origin is UnionType:
        return _any_of(kind, args, data, where)
    if is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, data, where)
    if origin is tuple and isinstance(data, list):
        kinds = args[:1] * len(data) if args[-1:] == (...,) else args
        if len(kinds) == len(data):
            pairs = zip(kinds, data, strict=True)
            return tuple(read(k, x, f"{where}[{i}]") for i, (k, x) in enumerate(pairs))
    elif origin is list and isinstance(data, list):
        return [read(args[0], x, f"{where}[{i}]") for i, x in enumerate(data)]
    elif origin in (dict, Mapping) and isinstance(data, dict):
        return {key: read(args[1], x, f"{where}[{key!r}]") for key, x in data.items()}
    elif kind is Any or _is_plain(kind, data):
        return float(data) if kind is float else data
    _refuse(kind, data, where)


def _is_plain(kind: Any, data: Any) -> bool:
    if kind is None or kind is type(None):
        return data is None
    if isinstance(data, bool):
        return kind is bool
    if kind not in (int, float):
        return isinstance(kind, type) and isinstance(data, kind)
    if isinstance(data, int):
        return -(1 << 63) <= data < 1 << 63
    return kind is float and isinstance(data, float) and isfinite(data)


def _any_of(kind: Any, kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    plain = [each for each in kinds if get_origin(each) is None and not is_dataclass(each)]
    if any(_is_plain(each, data) for each in plain):
        return data
    rest = [each for each in kinds if each not in plain]
    if len(rest) != 1:
        _refuse(kind, data, where)
    return read(rest[0], data, where)


def _record(kind: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        _refuse(kind, data, where)
    hints, required = _fields(kind)
    for what, names in (("lacks", required - data.keys()), ("has no", data.keys() - hints.keys())):
        if names:
            raise ValueError(f"a {kind.__name__} {what} {min(names)[:_SHOWN]!r}{_at(where)}")
    return kind(**{name: read(hints[name], x, f"{where}.{name}") for name, x in data.items()})


@cache
def _fields(kind: Any) -> tuple[Mapping[str, Any], frozenset[str]]:
    """The types of a dataclass's fields, and the fields that have no default."""
    found = fields(kind)
    hints = get_type_hints(kind)
    lack = (f for f in found if f.default is MISSING and f.default_factory is MISSING)
    return {f.name: hints[f.name] for f in found}, frozenset(f.name for f in lack)


def _refuse(kind: Any, data: Any, where: str) -> NoReturn:
    wanted = kind.__name__ if isinstance(kind, type) and not get_args(kind) else kind
    shown = type(data).__name__ if isinstance(data, list | dict) else str(data)
    text = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    raise ValueError(f"expected {wanted}{_at(where)}, got {text!r}")


def _at(where: str) -> str:
    return f" at {where.removeprefix('.')}" if where else ""
