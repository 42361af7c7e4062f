"""Constant arrays in the text form: small ones in place, large ones by name at the end.

    dense     ::= 'dense<' type (number | '[' number,* ']') '>'      one number fills the array
    resources ::= 'resources {' ('@' name '=' type 'zlib(' base64 ')')* '}'

Bytes are little-endian, compressed, in lines of 100 columns. Writing stops at a limit on compressed
bytes, reading at one on plain bytes: a decompression bomb ends there.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from .lexer import NAME, Cursor
from .numbers import NUMBER, format_number, read_number
from .types import ArrayType, Spec, dtype_from_name, dtype_name

INLINE_ELEMENTS = 16
WRITE_LIMIT = 1 << 20
READ_LIMIT = 1 << 26

_DIM = "[0-9]{1,18}(?:/[A-Za-z_][A-Za-z0-9_]*:[1-9][0-9]{0,8})*"
TYPE = re.compile(rf"([a-z][a-z0-9_]*(?:<[a-z0-9_]+>)?)\[((?:{_DIM}(?:,{_DIM})*)?)\](\*?)")
_RESOURCE = re.compile(r"@([A-Za-z0-9_]+) = ")
_PAYLOAD = re.compile(r"[A-Za-z0-9+/=\s]*")
_SECTION = "\nresources {"
_CHUNK = 1 << 20
_COLUMNS = 92


def read_type(cursor: Cursor) -> ArrayType:
    """Read an array type. Raises `ParseError` where there is none."""
    start = cursor.pos
    match = cursor.take(TYPE)
    if match is None:
        cursor.fail("expected a type such as f32[8,16]")
    name, dims, weak = match.groups()
    host = name.endswith("<host>")
    try:
        dtype = dtype_from_name(name.removesuffix("<host>"))
    except KeyError:
        cursor.fail(f"unknown dtype {name!r}", start)
    sizes, spec = _read_dims(dims)
    return ArrayType(sizes, dtype, weak == "*", host, spec)


def _read_dims(text: str) -> tuple[tuple[int, ...], Spec]:
    """Sizes of the dimensions, and how they are divided."""
    if "/" not in text:
        return tuple(map(int, text.split(","))) if text else (), ()
    dims = [dim.split("/") for dim in text.split(",")]
    axes = ((axis.split(":") for axis in each) for _, *each in dims)
    spec = tuple(tuple((name, int(count)) for name, count in each) for each in axes)
    return tuple(int(size) for size, *_ in dims), spec


def is_plain(dtype: Any) -> bool:
    """True for the dtypes whose elements the text form can write."""
    try:
        return bool(dtype_from_name(dtype_name(dtype)) == dtype) and isinstance(dtype, np.dtype)
    except KeyError:
        return False


@dataclass(slots=True)
class Writer:
    """Collects the constants of one text; equal ones share a name."""

    limit: int = WRITE_LIMIT
    names: dict[tuple[str, bytes], str] = field(default_factory=dict)
    payloads: list[tuple[str, str, bytes]] = field(default_factory=list)

    def write(self, array: np.ndarray[Any, Any]) -> str | None:
        """Text of an array, or its name in the section; None where that is over the limit."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        kind = str(ArrayType(array.shape, array.dtype))
        raw = _little_endian(array)
        if _is_uniform(raw, array):
            return f"dense<{kind} {format_number(array.reshape(-1)[0])}>"
        if array.size <= INLINE_ELEMENTS:
            return f"dense<{kind} [{', '.join(map(format_number, array.reshape(-1)))}]>"
        known = self.names.get((kind, raw))
        if known is not None:
            return f"@{known}"
        payload = self._compress(raw)
        if payload is None:
            return None
        name = f"c{len(self.payloads)}"
        self.names[kind, raw] = name
        self.payloads.append((name, kind, payload))
        self.limit -= len(payload)
        return f"@{name}"

    def _compress(self, raw: bytes) -> bytes | None:
        if self.limit <= 0:
            return None
        packer, parts, size = zlib.compressobj(), [], 0
        for at in range(0, len(raw), _CHUNK):
            parts.append(packer.compress(raw[at : at + _CHUNK]))
            size += len(parts[-1])
            if size > self.limit:
                return None
        parts.append(packer.flush())
        return b"".join(parts) if size + len(parts[-1]) <= self.limit else None

    def section(self) -> Iterator[str]:
        """Lines of the resource section; none where nothing was collected."""
        if not self.payloads:
            return
        yield ""
        yield "resources {"
        for name, kind, payload in self.payloads:
            text = base64.b64encode(payload).decode()
            yield f"  @{name} = {kind} zlib("
            yield from (f"    {text[i : i + _COLUMNS]}" for i in range(0, len(text), _COLUMNS))
            yield "  )"
        yield "}"


class Digests(Writer):
    """Tells larger constants by a digest of their bytes: for people, and to compare."""

    __slots__ = ()

    def write(self, array: np.ndarray[Any, Any]) -> str | None:
        """Text of an array; what is not written in place is `dense<f32[64] #8c5b0a6f1d2e>`."""
        array = np.ascontiguousarray(array).reshape(array.shape)
        raw = _little_endian(array)
        if array.size <= INLINE_ELEMENTS or _is_uniform(raw, array):
            return Writer.write(self, array)
        kind = ArrayType(array.shape, array.dtype)
        return f"dense<{kind} #{hashlib.sha256(raw).hexdigest()[:12]}>"


def _is_uniform(raw: bytes, array: np.ndarray[Any, Any]) -> bool:
    size = array.itemsize
    return array.size > 1 and raw[size:] == raw[:-size]


def _little_endian(array: np.ndarray[Any, Any]) -> bytes:
    swapped = array.byteswap() if sys.byteorder == "big" else array
    return swapped.tobytes()


class Reader:
    """The constants of one text, unpacked when they are first used."""

    def __init__(self, text: str, limit: int = READ_LIMIT) -> None:
        """Find the section at the end of `text`; `limit` is in bytes, for all constants."""
        self.left = limit
        start = text.rfind(_SECTION) + 1
        self.start = start or len(text)
        self.packed: dict[str, tuple[ArrayType, int, str]] = {}
        self.arrays: dict[str, np.ndarray[Any, Any]] = {}
        self.cursor = Cursor(text)
        if start:
            self._read_section()

    def _read_section(self) -> None:
        cursor = self.cursor
        cursor.pos = self.start + len(_SECTION) - 1
        while not cursor.at("}"):
            cursor.skip()
            match = cursor.take(_RESOURCE)
            if match is None:
                cursor.fail("expected a constant such as `@c0 = f32[256] zlib(...)`")
            if match.group(1) in self.packed:
                cursor.fail(f"@{match.group(1)} is defined twice", match.start())
            kind = read_type(cursor)
            cursor.expect("zlib(", "before the bytes of a constant")
            payload = cursor.take(_PAYLOAD)
            assert payload is not None
            self.packed[match.group(1)] = (kind, match.start(), payload.group())
            cursor.expect(")", "after the bytes of a constant")
        cursor.skip()
        if cursor.pos != len(cursor.text):
            cursor.fail("nothing may follow the resources")

    def named(self, cursor: Cursor) -> np.ndarray[Any, Any]:
        """Read a constant by its name; the cursor stands behind the `@`."""
        at = cursor.pos
        name = cursor.word(NAME, "the name of a constant")
        if name not in self.packed:
            cursor.fail(f"there is no constant @{name} in the resources", at - 1)
        if name not in self.arrays:
            self.arrays[name] = self._unpack(*self.packed[name])
        return self.arrays[name]

    def _unpack(self, kind: ArrayType, at: int, text: str) -> np.ndarray[Any, Any]:
        size = self._claim(kind, self.cursor, at)
        try:
            unpacker = zlib.decompressobj()
            packed = base64.b64decode("".join(text.split()), validate=True)
            raw = unpacker.decompress(packed, size + 1)
        except (binascii.Error, zlib.error) as error:
            self.cursor.fail(f"damaged constant: {error}", at)
        if len(raw) != size or not unpacker.eof or unpacker.unused_data:
            self.cursor.fail(f"a constant of type {kind} wants {size} bytes, got others", at)
        return self._from_bytes(raw, kind, at)

    def _from_bytes(self, raw: bytes, kind: ArrayType, at: int) -> np.ndarray[Any, Any]:
        if kind.dtype == np.bool_ and raw.strip(b"\0\1"):
            self.cursor.fail("a constant of booleans wants bytes 0 and 1", at)
        array = np.frombuffer(raw, kind.dtype).reshape(kind.shape)
        return array.byteswap() if sys.byteorder == "big" else array

    def _claim(self, kind: ArrayType, cursor: Cursor, at: int) -> int:
        if not is_plain(kind.dtype) or kind.weak:
            cursor.fail(f"a constant cannot have the type {kind}", at)
        size = prod(kind.shape) * int(kind.dtype.itemsize)
        if size > self.left:
            cursor.fail(f"the constants are larger than the limit on what is read: {kind}", at)
        self.left -= size
        return size

    def dense(self, cursor: Cursor) -> np.ndarray[Any, Any]:
        """Read an array in place; the cursor stands behind `dense<`."""
        start = cursor.pos
        kind = read_type(cursor)
        self._claim(kind, cursor, start)
        if cursor.at("["):
            elements = []
            while not cursor.at("]"):
                elements.append(read_element(cursor, kind.dtype))
                if not cursor.at(","):
                    cursor.expect("]", "after the elements")
                    break
            if len(elements) != kind.size:
                cursor.fail(f"{kind} wants {kind.size} elements, got {len(elements)}", start)
            array = np.array(elements, kind.dtype).reshape(kind.shape)
        else:
            array = np.full(kind.shape, read_element(cursor, kind.dtype), kind.dtype)
        cursor.expect(">", "after the elements")
        return array


_ELEMENT = re.compile(rf"True|False|{NUMBER.pattern}")


def read_element(cursor: Cursor, dtype: Any) -> Any:
    """Read a number of `dtype`."""
    cursor.skip()
    start = cursor.pos
    match = cursor.take(_ELEMENT)
    if match is None:
        cursor.fail("expected a number")
    try:
        return read_number(match.group(), dtype)
    except ValueError as error:
        cursor.fail(str(error), start)
