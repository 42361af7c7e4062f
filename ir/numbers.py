"""Numbers as text, bit for bit: NumPy scalars of every dtype the IR knows.

    number  ::= real | real ('+' | '-') real 'j' | 'True' | 'False'
    real    ::= '-'? (digits ['.' digits] ['e' sign? digits] | 'inf' | 'nan' | '0x' hex)

A float is the shortest decimal that reads back to the same bits. One that no decimal gives (a NaN
with a payload) is written by its bits, `0x7fc00001`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np

from .types import is_complex, is_inexact

_REAL = r"(?:inf|nan|0x[0-9a-f]{1,32}|[0-9]{1,4000}(?:\.[0-9]{1,400})?(?:e[+-]?[0-9]{1,4})?)"
NUMBER = re.compile(rf"(-?{_REAL})(?:([+-]{_REAL})j)?(?![0-9a-zA-Z_.])")


def format_number(x: Any) -> str:
    """Text of a NumPy scalar, without its dtype; `read_number` gives it back."""
    return _format(x.dtype, x.tobytes())


@lru_cache(maxsize=4096)
def _format(dtype: Any, raw: bytes) -> str:
    x = np.frombuffer(raw, dtype)[0]
    if dtype == np.bool_:
        return str(bool(x))
    if is_complex(dtype):
        imaginary = format_number(x.imag)
        sign = "" if imaginary.startswith("-") else "+"
        return f"{format_number(x.real)}{sign}{imaginary}j"
    if not is_inexact(dtype):
        return str(int(x))
    for text in _decimals(x, dtype):
        try:
            if read_number(text, dtype).tobytes() == raw:
                return text
        except ValueError:
            continue
    return hex(int.from_bytes(raw, "little"))


def _decimals(x: Any, dtype: Any) -> Iterator[str]:
    """Candidate texts of a float, the shortest first."""
    exact = float(x)
    if exact != exact:
        yield from ("nan", "-nan")
    elif dtype == np.float64 or exact in (float("inf"), float("-inf")):
        yield repr(exact)
    else:
        if dtype in (np.float32, np.float16):
            yield str(x)
        elif len(repr(exact)) < 7:
            yield repr(exact)
        yield from (_with_point(f"{exact:.{digits}g}") for digits in range(1, 10))
        yield repr(exact)


def _with_point(text: str) -> str:
    return text if "." in text or "e" in text else f"{text}.0"


@lru_cache(maxsize=4096)
def read_number(text: str, dtype: Any) -> Any:
    """NumPy scalar of `dtype` from its text. Raises `ValueError` where it does not fit."""
    if text in ("True", "False"):
        if dtype != np.bool_:
            raise ValueError(f"{text} is not a number of dtype {dtype}")
        return np.bool_(text == "True")
    match = NUMBER.fullmatch(text)
    if match is None or dtype == np.bool_:
        raise ValueError(f"{text} is not a value of dtype {dtype}")
    real, imaginary = match.groups()
    if (imaginary is not None) != is_complex(dtype):
        raise ValueError(f"{text} is not a value of dtype {dtype}")
    if imaginary is not None:
        part = np.zeros((), dtype).real.dtype
        parts = [_real(real, part), _real(imaginary.removeprefix("+"), part)]
        return np.asarray(parts, part).view(dtype)[0]
    return _real(real, dtype)


def _real(text: str, dtype: Any) -> Any:
    if is_inexact(dtype):
        if "0x" in text:
            return _from_bits(text, dtype)
        wide = float(text)
        with np.errstate(all="ignore"):
            found = np.asarray(wide).astype(dtype)[()]
        fits = np.isfinite(wide) == np.isfinite(float(found)) and np.isnan(wide) == np.isnan(
            float(found)
        )
        if not fits:
            raise ValueError(f"{text} does not fit {dtype}")
        return found
    if not re.fullmatch("-?[0-9]+", text):
        raise ValueError(f"{text} is not an integer")
    number = int(text)
    try:
        integer = np.asarray(number).astype(dtype)[()]
    except (OverflowError, TypeError):
        integer = None
    if integer is None or int(integer) != number:
        raise ValueError(f"{text} does not fit {dtype}")
    return integer


def _from_bits(text: str, dtype: Any) -> Any:
    size = int(dtype.itemsize)
    number = int(text, 16)
    if not 0 <= number < 1 << 8 * size:
        raise ValueError(f"{text} does not fit {dtype}")
    return np.frombuffer(number.to_bytes(size, "little"), dtype)[0]
