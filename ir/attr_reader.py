"""Reads attribute values; the grammar stands in `ir/attrs.py`, beside the tables."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import PartitionSpec

from .attrs import ENUMS, POLICIES, PRNGS, RECORDS, Opaque
from .graph import Graph
from .lexer import NAME, STRING, Cursor
from .numbers import NUMBER, read_number
from .resources import Reader
from .types import dtype_from_name

_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_DTYPE = re.compile(r"(?:key<[a-z0-9_]{1,30}>)|[a-z][a-z0-9_]*")
_INTEGER = re.compile(r"-?[0-9]+")
_NO_STRING = re.compile(r"(?!)")
_CONSTANTS = {"None": None, "True": True, "False": False}


def _equals_itself(x: Any) -> bool:
    """False for NaN, and for tuples that hold one."""
    return all(map(_equals_itself, x)) if isinstance(x, tuple) else bool(x == x)


class AttrReader:
    """Reads attribute values from a cursor; `graph` reads a graph that stands as a value."""

    def __init__(
        self,
        cursor: Cursor,
        constants: Reader,
        graph: Callable[[], Graph],
        depth: int,
        opaque: bool = False,
    ) -> None:
        """`depth` bounds how deep values may nest; `opaque` reads what is only named."""
        self.opaque = opaque
        self.cursor, self.constants, self.graph = cursor, constants, graph
        self.depth = depth
        self.owner = ""

    def attrs(self, op: str, plain: Mapping[str, Any]) -> dict[str, Any]:
        """Read `{key=value, ...}` of an `op`; the cursor stands behind the brace.

        `plain` has the attributes that are there where the text says nothing.
        """
        cursor = self.cursor
        found = dict(plain)
        seen: set[str] = set()
        while not cursor.at("}"):
            absent = cursor.at("-")
            cursor.skip()
            start = cursor.pos
            key = cursor.word(NAME, "an attribute such as `axes=(0,)`")
            if key in seen:
                cursor.fail(f"attribute {key!r} is given twice", start)
            seen.add(key)
            if absent:
                found.pop(key, None)
            else:
                cursor.expect("=", f"after the attribute {key!r}")
                self.owner = f"attribute {key!r} of {op}"
                found[key] = self.value()
            if not cursor.at(","):
                cursor.expect("}", "after the attributes")
                break
        return found

    def value(self) -> Any:
        """Read one value."""
        cursor = self.cursor
        cursor.skip()
        character = cursor.text[cursor.pos : cursor.pos + 1]
        if character in _OPENING:
            cursor.pos += 1
            return self._nested(_OPENING[character])
        if character == '"':
            return cursor.word(_NO_STRING, "a string that ends on its line")
        if character == "@":
            cursor.pos += 1
            return self.constants.named(cursor)
        number = cursor.take(NUMBER)
        return self._word() if number is None else self._number(number.group(), number.start())

    def _nested(self, read: Callable[[AttrReader], Any]) -> Any:
        if self.depth == 0:
            self.cursor.fail("values nest too deep")
        self.depth -= 1
        found = read(self)
        self.depth += 1
        return found

    def _items(self, close: str, read: Callable[[], Any]) -> list[Any]:
        """Read `item, item, ... close`."""
        found: list[Any] = []
        while not self.cursor.at(close):
            found.append(read())
            if not self.cursor.at(","):
                self.cursor.expect(close, "or a comma")
                break
        return found

    def _tuple(self) -> Any:
        return tuple(self._items(")", self.value))

    def _list(self) -> Any:
        return self._items("]", self.value)

    def _dict(self) -> Any:
        def pair() -> tuple[Any, Any]:
            start = self.cursor.pos
            key = self._hashable(self.value(), start)
            self.cursor.expect(":", "after a key")
            return key, self.value()

        return dict(self._items("}", pair))

    def _hashable(self, x: Any, at: int) -> Any:
        try:
            hash(x)
        except TypeError:
            self.cursor.fail(f"a {type(x).__name__} cannot be a key or a part of this", at)
        if not _equals_itself(x):
            self.cursor.fail("nan cannot be a key or a part of this", at)
        return x

    def _frozenset(self) -> Any:
        start = self.cursor.pos
        return frozenset(self._hashable(x, start) for x in self._items("}", self.value))

    def _plain_items(self) -> list[Any]:
        """Read items up to a bracket that can be told equal: no arrays."""
        start = self.cursor.pos
        return [self._hashable(x, start) for x in self._items(")", self.value)]

    def _slice(self) -> Any:
        start = self.cursor.pos
        parts = self._plain_items()
        if len(parts) != 3:
            self.cursor.fail("a slice wants start, stop and step", start)
        return slice(*parts)

    def _spec(self) -> Any:
        start = self.cursor.pos
        parts = self._items(")", self.value)
        for part in parts:
            names = part if isinstance(part, tuple) else () if part is None else (part,)
            if not all(isinstance(name, str) and name for name in names):
                self.cursor.fail("a PartitionSpec wants None, or names of mesh axes", start)
        try:
            return PartitionSpec(*parts)
        except (TypeError, ValueError) as error:
            self.cursor.fail(f"a PartitionSpec cannot be made: {error}", start)

    def _number(self, text: str, at: int) -> Any:
        cursor = self.cursor
        try:
            if cursor.text.startswith(":", cursor.pos) and text:
                mark = cursor.pos
                cursor.pos += 1
                dtype = cursor.take(_DTYPE)
                if dtype is not None:
                    return read_number(text, self._dtype(dtype.group(), dtype.start()))
                cursor.pos = mark
            if _INTEGER.fullmatch(text):
                return int(text)
            wide = read_number(text, np.dtype(complex if text.endswith("j") else float))
            return wide.item()
        except ValueError as error:
            cursor.fail(str(error), at)

    def _word(self) -> Any:
        cursor = self.cursor
        start = cursor.pos
        match = cursor.take(_WORD)
        if match is None:
            cursor.fail(f"expected a value for {self.owner}")
        name = match.group()
        if name in _CONSTANTS:
            if name != "None" and cursor.text.startswith(":bool", cursor.pos):
                cursor.pos += len(":bool")
                return np.bool_(_CONSTANTS[name])
            return _CONSTANTS[name]
        if name == "graph":
            cursor.pos = start
            return self.graph()
        for opening, read in _FORMS.get(name, {}).items():
            if cursor.text.startswith(opening, cursor.pos):
                cursor.pos += len(opening)
                return self._nested(read)
        if name in ENUMS or name in RECORDS:
            return self._member(name, start)
        cursor.pos = start
        dtype = cursor.take(_DTYPE)
        return self._dtype(dtype.group() if dtype else name, start)

    def _dtype(self, name: str, at: int) -> Any:
        try:
            return dtype_from_name(name)
        except KeyError:
            self.cursor.fail(f"unknown value {name!r} for {self.owner}", at)

    def _member(self, name: str, at: int) -> Any:
        cursor = self.cursor
        if name in ENUMS and cursor.at("."):
            member = cursor.word(NAME, f"a member of {name}")
            if member in ENUMS[name].__members__:
                return ENUMS[name][member]
            cursor.fail(f"{name} has no member {member!r}", at)
        cursor.expect("(", f"after {name}")
        fields = dict(self._nested(AttrReader._fields))
        try:
            return RECORDS[name](**fields)
        except (KeyError, TypeError, ValueError) as error:
            cursor.fail(f"{name} cannot be made: {error}", at)

    def _fields(self) -> Any:
        def field() -> tuple[str, Any]:
            self.cursor.skip()
            key = self.cursor.word(NAME, "the name of a field")
            self.cursor.expect("=", "after the name of a field")
            start = self.cursor.pos
            return key, self._hashable(self.value(), start)

        return self._items(")", field)

    def _named(self, table: Any, close: str, what: str) -> Any:
        start = self.cursor.pos
        name = self.cursor.word(NAME, what)
        if name not in table:
            self.cursor.fail(f"unknown {what} {name!r}", start)
        if close:
            self.cursor.expect(close, f"after {what}")
        return table[name]

    def _keys(self) -> Any:
        cursor = self.cursor
        start = cursor.pos
        implementation = cursor.word(_NO_STRING, "the quoted name of a PRNG")
        data = self.value()
        cursor.expect(">", "after the data of keys")
        try:
            return jax.random.wrap_key_data(data, impl=implementation)
        except (TypeError, ValueError) as error:
            cursor.fail(f"keys cannot be made: {error}", start)

    def _opaque(self) -> Any:
        if self.opaque:
            found = Opaque(self.cursor.word(_NO_STRING, "the quoted name of a Python object"))
            self.cursor.expect(">", "after the name of a Python object")
            return found
        text = STRING.match(self.cursor.text, self.cursor.pos)
        what = f": {text.group(1)}" if text else ""
        self.cursor.fail(f"{self.owner} is a Python object that text cannot bring back{what}")


_OPENING: dict[str, Callable[[AttrReader], Any]] = {
    "(": AttrReader._tuple,
    "[": AttrReader._list,
    "{": AttrReader._dict,
}
_FORMS: dict[str, dict[str, Callable[[AttrReader], Any]]] = {
    "dense": {"<": lambda r: r.constants.dense(r.cursor)},
    "frozenset": {"{": AttrReader._frozenset},
    "P": {"(": AttrReader._spec},
    "keys": {"<": AttrReader._keys},
    "opaque": {"<": AttrReader._opaque},
    "policy": {".": lambda r: r._named(POLICIES, "", "policy")},
    "prng": {"<": lambda r: r._named(PRNGS, ">", "PRNG")},
    "slice": {"(": AttrReader._slice},
}
